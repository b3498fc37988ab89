"""Runs on a cluster with SLURM, through submitit; needs the extra ``slurm``."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from metatransfer.cli.executors.base import Killed, R, T, call_in
from metatransfer.errors import explained
from metatransfer.storage import short_path

# of submitit for every kind of cluster; the names of all others begin with slurm_ there
_GENERAL = ("name", "timeout_min", "mem_gb", "cpus_per_task", "gpus_per_node")
_DEFAULTS = {"name": "metatransfer", "timeout_min": 240, "cpus_per_task": 1}  # submitit's own limit is 5 minutes


class Slurm:
    """Every run is a job of SLURM, all of them in one array.

    Args:
        options: those of submitit's ``AutoExecutor.update_parameters``, without the prefix ``slurm_``: ``timeout_min``
            (by default 240), ``cpus_per_task``, ``gpus_per_node``, ``mem_gb``, ``partition``, ``account``, ...
        folder: for the files of submitit; all nodes must see it.

    Attributes:
        cluster: the kind of cluster, for submitit.
        pause: seconds between two looks at the jobs.

    Raises:
        UserError: submitit is not installed or does not know an option, or there is no SLURM.
    """

    cluster: ClassVar[str] = "slurm"
    pause: ClassVar[float] = 2.0

    def __init__(self, options: Mapping[str, Any], folder: Path) -> None:
        with explained("executor slurm needs the package submitit", "install the extra, pip install "
                       "'metatransfer[slurm]'", ImportError, quoted=False):  # fmt: skip
            import submitit
        self._submitit = submitit
        with explained("executor slurm needs SLURM", "start the command on a login node of a cluster that has it",
                       RuntimeError, quoted=False):  # fmt: skip
            self._executor = submitit.AutoExecutor(folder, cluster=self.cluster)
        given = {name if name in _GENERAL else f"slurm_{name}": one for name, one in {**_DEFAULTS, **options}.items()}
        with explained("executor slurm does not accept its options", "give those of submitit, without slurm_"):
            self._executor.update_parameters(**given)

    def each(self, function: Callable[[T], R], items: Sequence[T]) -> Iterator[tuple[int, R | Killed]]:
        """See :class:`~metatransfer.cli.executors.base.Executor`."""
        many = len(items)
        with explained("SLURM does not accept the jobs", "change the options of the executor"):
            jobs = self._executor.map_array(call_in, [os.getcwd()] * many, [function] * many, items)
        try:
            for one in self._submitit.helpers.as_completed(jobs, poll_frequency=self.pause):
                yield jobs.index(one), self._result(one)
        finally:  # after Ctrl-C
            for one in jobs:
                if not one.done():
                    one.cancel(check=False)

    def _result(self, job: Any) -> Any:  # noqa: ANN401
        try:
            return job.result()
        except self._submitit.core.utils.UncompletedJobError:
            return Killed(
                f"job {job.job_id} has no result (state: {job.state}): see '{short_path(job.paths.stderr)}'; if it "
                "needs more time or memory, give --executor.timeout_min or --executor.mem_gb, and run it again."
            )
