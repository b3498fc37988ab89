"""The one exception that a user's mistake raises."""


class UserError(ValueError):
    """A mistake that the user can mend, told in one sentence.

    The message says what was expected, what came and what to do. The command line prints it without a traceback and
    ends with status 2; in Python it is an ordinary ``ValueError``.
    """
