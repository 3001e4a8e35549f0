"""Instances in containers of a Docker engine."""
