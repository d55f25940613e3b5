"""Reports on checkpoints, learning curves and sampled text."""
