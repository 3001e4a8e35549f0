"""The composition root: which planes share a process, and how their objects are wired. Nothing below it knows."""
