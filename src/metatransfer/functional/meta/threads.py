"""Tasks in parallel on a CPU: each thread has its share of the tasks and of the cores."""

from __future__ import annotations

import copy
import os
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from typing import TypeVar

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

Result = TypeVar("Result")
MOST = 8  # more threads would wait for the interpreter lock

_local = threading.local()
_pools: dict[int, ThreadPoolExecutor] = {}
os.register_at_fork(after_in_child=_pools.clear)  # a forked child has no threads of its parent


class _NoReplica(Exception):
    """A network cannot be copied."""


def thread_count(jobs: int) -> int:
    """Number of threads for ``jobs`` independent jobs; 1 inside such a thread."""
    return 1 if hasattr(_local, "replicas") else max(1, min(jobs, torch.get_num_threads(), MOST))


def in_threads(jobs: Sequence[Callable[[], Result]]) -> list[Result]:
    """Runs jobs in parallel threads, with the gradient, inference and autocast modes of the caller.

    The cores (``torch.get_num_threads``) are divided among the threads. Jobs must not change shared objects; networks
    called through :func:`stateless` are safe. If jobs draw random numbers or a network cannot be copied, the jobs run
    again one after the other, so that results depend only on the seed.

    Args:
        jobs: functions without arguments.

    Returns:
        Their results, in order.
    """
    cores = torch.get_num_threads()
    if len(jobs) == 1 or cores == 1 or hasattr(_local, "replicas"):
        return [job() for job in jobs]
    before = torch.get_rng_state()
    grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    autocast = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu")

    def run(job: Callable[[], Result]) -> Result:
        _local.replicas = {}
        torch.set_num_threads(max(1, cores // len(jobs)))
        try:
            with (
                torch.inference_mode(inference),
                torch.set_grad_enabled(grad),
                torch.autocast("cpu", dtype=dtype, enabled=autocast),
            ):
                return job()
        finally:
            del _local.replicas

    with ExitStack() as stack:
        # these flags are global, so they are set once for all threads
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        fused = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        stack.callback(torch.backends.mha.set_fastpath_enabled, fused)
        # set_num_threads in a thread also affects threads started later
        stack.callback(torch.set_num_threads, cores)
        futures = [_pool(len(jobs)).submit(run, job) for job in jobs]
        wait(futures)  # all of them, also if one failed, before the flags are restored
    try:
        results = [future.result() for future in futures]
    except _NoReplica:
        torch.set_rng_state(before)
        return [job() for job in jobs]
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


def replica_of(module: nn.Module) -> nn.Module:
    """The module, or inside :func:`in_threads` the copy of this thread, which shares all parameters and buffers.

    Raises:
        _NoReplica: the module cannot be copied; :func:`in_threads` catches it.
    """
    replicas: dict[int, nn.Module] | None = getattr(_local, "replicas", None)
    if replicas is None:
        return module
    if id(module) not in replicas:
        shared = [*module.parameters(), *module.buffers()]
        try:
            replicas[id(module)] = copy.deepcopy(module, {id(tensor): tensor for tensor in shared})
        except Exception as error:  # any attribute may fail to copy, such as the weight of torch's old weight_norm
            raise _NoReplica from error
    return replicas[id(module)]
