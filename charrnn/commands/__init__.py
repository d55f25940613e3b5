"""One file a command: options, help, errors into messages."""
