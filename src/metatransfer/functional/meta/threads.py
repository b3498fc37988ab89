"""Tasks side by side on the cores of a CPU: several threads, each with its share of the tasks and of the cores."""

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
MOST = 8  # more threads wait for the interpreter, which each small operation takes for a moment

_local = threading.local()
_pools: dict[int, ThreadPoolExecutor] = {}
os.register_at_fork(after_in_child=_pools.clear)  # a child process has none of its parent's threads


class _NoReplica(Exception):
    """A network cannot be copied."""


def thread_count(jobs: int) -> int:
    """How many threads work on ``jobs`` independent jobs: 1 inside such a thread."""
    return 1 if hasattr(_local, "replicas") else max(1, min(jobs, torch.get_num_threads(), MOST))


def in_threads(jobs: Sequence[Callable[[], Result]]) -> list[Result]:
    """Runs jobs side by side; modes of gradient, inference and autocast are the caller's.

    The cores are divided among the threads (``torch.set_num_threads`` of the caller says how many there are). Jobs must
    not change what they share; networks called through :func:`metatransfer.functional.stateless` are safe. Jobs that
    draw random numbers are run again one after the other, so that a seed gives the same numbers always; so are those
    whose network cannot be copied.

    Args:
        jobs: functions without arguments.

    Returns:
        What they return, in their order.
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
        # these are no thread's own: the threads would switch them off and on under each other's feet
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        fused = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        stack.callback(torch.backends.mha.set_fastpath_enabled, fused)
        # a thread that sets its number sets that of all threads to come, too
        stack.callback(torch.set_num_threads, cores)
        futures = [_pool(len(jobs)).submit(run, job) for job in jobs]
        wait(futures)  # all of them, also where one failed: none may go on once the flags are back
    try:
        results = [future.result() for future in futures]
    except _NoReplica:
        torch.set_rng_state(before)
        return [job() for job in jobs]
    if torch.equal(before, torch.get_rng_state()):
        return results
    warnings.warn(
        "the network draws random numbers, whose order several threads cannot keep: every meta-batch is worked off "
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
    """The module, or inside :func:`in_threads` this thread's copy of it, which shares all parameters and buffers.

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
        except Exception as error:  # whatever a layer holds may refuse, such as the weight of torch's old weight_norm
            raise _NoReplica from error
    return replicas[id(module)]
