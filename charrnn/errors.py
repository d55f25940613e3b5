"""The one exception that a user may see: its text is the whole message."""


class UserError(Exception):
    """Something the user can put right.

    The text is one plain sentence or two: the cause, then the next move. The commands print it on
    stderr, without a traceback, and exit with code 1. Anything else that escapes is a defect of ours
    and keeps its traceback.
    """
