"""Instances as microVMs: each a Firecracker process in a jail of its own, with its agent behind a vsock."""
