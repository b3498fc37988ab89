"""Runs on this machine."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

import torch

from metatransfer.cli.executors.base import Killed, R, T


class Local:
    """Runs one after the other in this process, or in parallel processes.

    Args:
        jobs: number of processes.
    """

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs

    def each(self, function: Callable[[T], R], items: Sequence[T]) -> Iterator[tuple[int, R | Killed]]:
        """See :class:`~metatransfer.cli.executors.base.Executor`."""
        if self.jobs == 1 or len(items) < 2:
            yield from ((place, function(item)) for place, item in enumerate(items))
            return
        threads = max(1, (os.cpu_count() or 1) // self.jobs)
        context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
        pool = ProcessPoolExecutor(self.jobs, context, torch.set_num_threads, (threads,))
        try:
            running: dict[Future[R], int] = {pool.submit(function, item): place for place, item in enumerate(items)}
            for one in as_completed(running):
                found: R | Killed = _result(one)
                yield running[one], found
        finally:  # after Ctrl-C, the jobs in the queue are not waited for
            pool.shutdown(wait=False, cancel_futures=True)


def _result(done: "Future[R]") -> R | Killed:
    try:
        return done.result()
    except BrokenProcessPool:
        return Killed("a process was killed, perhaps for lack of memory: run the command again with fewer --jobs.")
