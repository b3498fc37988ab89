"""Tasks in parallel on a CPU: each thread has its share of the tasks and of the cores."""

import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

import torch

__all__ = ["in_threads"]

Result = TypeVar("Result")
MOST = 8  # more threads would wait for the interpreter lock

_local = threading.local()
_pools: dict[int, ThreadPoolExecutor] = {}
os.register_at_fork(after_in_child=_pools.clear)  # a forked child has no threads of its parent


class SharedSetting:
    """A setting of the whole process, which is in force while any thread is inside a ``with`` block of it.

    Args:
        context: makes the context manager that changes the setting and restores it.
    """

    def __init__(self, context: Callable[[], AbstractContextManager[Any]]) -> None:
        self._context, self._lock, self._users = context, threading.Lock(), 0

    def __enter__(self) -> None:
        with self._lock:
            if not self._users:
                self._held = self._context()
                self._held.__enter__()
            self._users += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                self._held.__exit__(None, None, None)


@contextmanager
def _unfused() -> Iterator[None]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def _math() -> Iterator[None]:
    # not torch's sdpa_kernel, which from torch 2.15 on must be left by the thread that entered it
    kinds, settings = ("flash", "mem_efficient", "cudnn", "math"), torch.backends.cuda
    before = {kind: getattr(settings, f"{kind}_sdp_enabled")() for kind in kinds}
    for kind in kinds:
        getattr(settings, f"enable_{kind}_sdp")(kind == "math")
    try:
        yield
    finally:
        for kind, enabled in before.items():
            getattr(settings, f"enable_{kind}_sdp")(enabled)


# kernels without a second derivative are disabled: fused attention, that of eval mode, and cuDNN's recurrent layers
MATH_ATTENTION = SharedSetting(_math)
UNFUSED_ATTENTION = SharedSetting(_unfused)
WITHOUT_CUDNN = SharedSetting(lambda: torch.backends.cudnn.flags(enabled=False))


def thread_count(jobs: int) -> int:
    """Number of threads for ``jobs`` independent jobs; 1 inside such a thread."""
    return 1 if hasattr(_local, "busy") else max(1, min(jobs, torch.get_num_threads(), MOST))


def in_threads(jobs: Sequence[Callable[[], Result]]) -> list[Result]:
    """Runs jobs in parallel threads, with the gradient, inference and autocast modes of the caller.

    The cores (``torch.get_num_threads``) are divided among the threads. Jobs must not change shared objects; networks
    called through :func:`stateless` are safe. If jobs draw random numbers, they run again one after the other, so that
    results depend only on the seed.

    Args:
        jobs: functions without arguments.

    Returns:
        Their results, in order.
    """
    cores = torch.get_num_threads()
    if len(jobs) == 1 or cores == 1 or hasattr(_local, "busy"):
        return [job() for job in jobs]
    before = torch.get_rng_state()
    grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    autocast = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu")

    def run(job: Callable[[], Result]) -> Result:
        _local.busy = True
        torch.set_num_threads(max(1, cores // len(jobs)))
        try:
            with (
                torch.inference_mode(inference),
                torch.set_grad_enabled(grad),
                torch.autocast("cpu", dtype=dtype, enabled=autocast),
            ):
                return job()
        finally:
            del _local.busy

    futures = [_pool(len(jobs)).submit(run, job) for job in jobs]
    wait(futures)  # all of them, also if one failed
    torch.set_num_threads(cores)  # the number of a thread also affects threads started later
    results = [future.result() for future in futures]
    if torch.equal(before, torch.get_rng_state()):
        return results
    warnings.warn(
        "the network draws random numbers, whose order differs between threads: every meta-batch is computed "
        "again, one task after the other; choose batching='loop' instead.",
        stacklevel=2,
    )
    torch.set_rng_state(before)
    return [job() for job in jobs]


def _pool(size: int) -> ThreadPoolExecutor:
    if size not in _pools:
        _pools[size] = ThreadPoolExecutor(size, thread_name_prefix="tasks")
    return _pools[size]
