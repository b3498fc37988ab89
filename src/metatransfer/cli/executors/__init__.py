"""Where the runs of a comparison are executed: on this machine, or on a cluster."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metatransfer.checks import check_choice
from metatransfer.cli.executors.base import Executor
from metatransfer.cli.executors.local import Local
from metatransfer.errors import UserError

_NAMES = ("local", "ray", "slurm")


def executor_of(given: str | Mapping[str, Any], jobs: int, folder: Path) -> Executor:
    """The executor that the user asks for.

    Args:
        given: its name, or its options with its ``name``.
        jobs: number of processes of this machine.
        folder: where files of the executor may be written.

    Raises:
        UserError: the executor is unknown, does not have an option, or needs a package or program that is missing.
    """
    options = {"name": given} if isinstance(given, str) else {"name": "local", **given}
    name = options.pop("name")
    check_choice("executor", name, _NAMES)
    if name == "local" and options:
        raise UserError(f"executor local has no option '{next(iter(options))}': add --executor ray or slurm.")
    if name != "local" and jobs > 1:
        raise UserError(f"--jobs is for processes of this machine: leave out --jobs, or --executor {name}.")
    if name == "ray":
        from metatransfer.cli.executors.ray_cluster import RayCluster  # an extra

        return RayCluster(options)
    if name == "slurm":
        from metatransfer.cli.executors.slurm import Slurm  # an extra

        return Slurm(options, folder / "slurm")
    return Local(jobs)
