"""The entry point of ``charrnn`` and of ``python -m charrnn``.

Until a command changes that, Ctrl-C ends the process as usual. Python's own way, an exception,
may come in the middle of an import, where libraries swallow it and continue without the module. So
this comes before anything else is imported.
"""

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from charrnn.cli.main import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
