"""Processes of their own, forked from a server that has imported what takes seconds to import."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import socket
import sys

import torch
from torch.multiprocessing import start_processes

METHOD = "spawn" if sys.platform == "win32" else "forkserver"
CONTEXT = multiprocessing.get_context(METHOD)


def preload():
    """Says what the server imports; it starts with the first process that a test asks for."""
    if METHOD == "forkserver":
        multiprocessing.set_forkserver_preload(["torch", "lightning.pytorch", "metatransfer.cli"])


def in_two(function, *arguments):
    """Calls ``function(rank, *arguments)`` in two processes that Lightning's ``ddp`` finds; raises what they raise."""
    start_processes(_member, args=(free_port(), function, arguments), nprocs=2, start_method=METHOD)


def _member(rank, port, function, arguments):
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "NODE_RANK": "0",
        "LOCAL_RANK": str(rank), "RANK": str(rank), "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    torch.set_num_threads(1)
    function(rank, *arguments)
    os._exit(0)  # not by destroy_process_group, which may wait forever for gloo's thread in torch 2.6


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def started(function, *arguments, output=None):
    """A process that calls the function; what it prints goes to the file ``output``."""
    process = CONTEXT.Process(target=_alone, args=(function, arguments, output))
    process.start()
    return process


def _alone(function, arguments, output):
    torch.set_num_threads(1)
    if output is not None:
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
    function(*arguments)


def with_small_files(size, function, *arguments):
    """Calls the function where no file may become larger."""
    import resource  # not on Windows

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    function(*arguments)


def exit_code(process, timeout=240):
    """The exit status of a process that ends by itself; minus the signal that killed it."""
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        raise AssertionError(f"the process did not end in {timeout} seconds")
    return process.exitcode


def print_why_it_is_not_loaded(path):
    """Prints the error of a predictor whose method this process does not know."""
    from metatransfer import UserError, load_predictor

    try:
        load_predictor(path)
    except UserError as error:
        print(error)


def exit_with_what_is_imported(name):
    """Exits with 1 where the command line has imported a module."""
    importlib.import_module("metatransfer.cli")
    sys.exit(int(name in sys.modules))
