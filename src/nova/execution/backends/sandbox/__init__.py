"""The default backend: instances made of Linux namespaces, a read-only root, a system-call filter and cgroups."""
