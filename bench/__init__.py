"""The benchmark: Nova and its peers, driven from separate processes, in one run on one machine (docs/benchmarks.md)."""
