"""What is measured: Nova, and the peers that stand beside it in the same run."""
