"""Every setting: its flag, its key in a TOML file, its place in a checkpoint."""
