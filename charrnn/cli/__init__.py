"""The command line: one file per command, the flags, and the display. No other package imports click or rich."""
