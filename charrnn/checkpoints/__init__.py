"""The files that a run leaves: checkpoints and the folder they are in."""
