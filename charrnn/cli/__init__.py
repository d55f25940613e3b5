"""The command line: one file a command, flags, what is shown. Nothing else imports click or rich."""
