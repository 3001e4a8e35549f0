"""What runs inside a build's sandbox: standard library only, bound there as it stands."""
