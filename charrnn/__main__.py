"""The entry point of ``charrnn`` and of ``python -m charrnn``.

Until a command changes it, Ctrl-C ends the process at once, as the system does by default. Python would raise an
exception instead, perhaps in the middle of an import, where some libraries swallow it and continue without the module.
Therefore the handler is set before anything else is imported.
"""

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from charrnn.cli.main import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
