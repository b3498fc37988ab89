"""The exception for mistakes of the user."""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """A mistake that the user can fix, described in one sentence.

    The message states what was expected, what was received and what to do. The command line prints it without a
    traceback and exits with status 2; in Python it is an ordinary ``ValueError``.
    """


def in_short(error: BaseException) -> str:
    """What an error of another library says, on one line without a full stop; its type if it says nothing."""
    return (" ".join(str(error).split()) or type(error).__name__).rstrip(".")[:160]


@contextmanager
def explained(problem: str, remedy: str, *kinds: type[Exception], quoted: bool = True) -> Iterator[None]:
    """Raises a UserError in place of errors of other libraries, of any type without ``kinds``, and quotes them."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if kinds and not isinstance(error, kinds):
            raise
        raise UserError(f"{problem}{f' ({in_short(error)})' if quoted else ''}: {remedy}.") from error
