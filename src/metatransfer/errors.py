"""The exception for mistakes of the user."""


class UserError(ValueError):
    """A mistake that the user can fix, described in one sentence.

    The message states what was expected, what was received and what to do. The command line prints it without a
    traceback and exits with status 2; in Python it is an ordinary ``ValueError``.
    """
