"""What all executors have in common."""

import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Killed(Exception):
    """A process that ended without a result; the message says so in a sentence."""


class Executor(Protocol):
    """Calls a function for each of many items, in an order of its own."""

    def each(self, function: Callable[[T], R], items: Sequence[T]) -> Iterator[tuple[int, R | Killed]]:
        """The index of each item with the result, as soon as there is one."""


def call_in(folder: str, function: Callable[[T], R], item: T) -> R | Killed:
    """Calls a function on a node of a cluster, in the folder that the command was started in.

    Relative paths mean the same there, and classes of the user's own files are found, as by the command itself.
    """
    if not os.path.isdir(folder):
        return Killed(f"{socket.gethostname()} has no folder '{folder}': start in a folder that all nodes share.")
    os.chdir(folder)
    if folder not in sys.path:
        sys.path.append(folder)
    return function(item)
