"""The command line: one file per command, the flags, and the display. Nothing else imports click or rich."""
