"""Runs on a cluster of Ray (Moritz et al. 2018, 1712.05889); needs the extra ``ray``."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from metatransfer.cli.executors.base import Killed, R, T, call_in
from metatransfer.errors import explained, in_short


class RayCluster:
    """Every run is a task of Ray, which places it where its resources are free.

    Args:
        options: ``address`` of the cluster, by default that in ``RAY_ADDRESS`` or else a new Ray on this machine; all
            others are those of ``ray.remote``, such as ``num_cpus``, ``num_gpus`` and ``memory``.

    Raises:
        UserError: Ray is not installed, or does not know an option.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        with explained("executor ray needs the package ray", "install the extra, pip install 'metatransfer[ray]'",
                       ImportError, quoted=False):  # fmt: skip
            import ray
        self._ray, self.address = ray, options.get("address")
        given = {name: value for name, value in options.items() if name != "address"}
        with explained("executor ray does not accept its options", "give address, or options of ray.remote"):
            # a killed run is reported, as on one machine, and is not tried again by itself
            self._remote: Any = ray.remote(**{"num_cpus": 1, "max_retries": 0, **given})(call_in)

    def each(self, function: Callable[[T], R], items: Sequence[T]) -> Iterator[tuple[int, R | Killed]]:
        """See :class:`~metatransfer.cli.executors.base.Executor`."""
        if not self._ray.is_initialized():
            with explained("no connection to Ray", "check executor.address, or leave it out to start Ray here"):
                self._ray.init(self.address, log_to_driver=False, logging_level=logging.WARNING)
        running = {self._remote.remote(os.getcwd(), function, item): place for place, item in enumerate(items)}
        try:
            while running:
                done, _ = self._ray.wait(list(running))
                place = running.pop(done[0])
                yield place, self._result(done[0])
        finally:  # after Ctrl-C
            for one in running:
                self._ray.cancel(one, force=True)

    def _result(self, done: Any) -> Any:  # noqa: ANN401
        try:
            return self._ray.get(done)
        except self._ray.exceptions.RayError as error:
            if cause := getattr(error, "cause", None):  # raised by the run
                return Killed(f"its process failed ({in_short(cause)}): solve this, and run the command again.")
            return Killed(
                f"Ray lost its process ({in_short(error)}): if it needs more memory, give --executor.memory, and run "
                "the command again."
            )
