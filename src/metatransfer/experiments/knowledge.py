"""What is known about methods: the scores that each reached on tasks whose features are known."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from metatransfer.checks import check_file
from metatransfer.errors import UserError
from metatransfer.storage import write_atomically

Array = NDArray[np.float64]
FEW_TASKS = 5
SHIPPED = Path(__file__).with_name("knowledge.json")
"""Knowledge that comes with the package; ``tools/build_knowledge.py`` makes it."""


@dataclass(frozen=True, eq=False)
class Knowledge:
    """A table of tasks with their features and the scores of methods on them.

    Attributes:
        tasks: ``T`` names of the tasks.
        features: ``F`` names of the task features.
        methods: ``M`` names of the methods.
        values: ``(T, F)`` task features; NaN where a feature is not defined.
        scores: ``(T, M)`` scores, higher is better; NaN where a method was not run.
        needs: what data must have for a method, such as ``("images",)``, by method; a method without an entry needs
            nothing.
        about: sentences on how the scores were measured, shown with every recommendation.

    Raises:
        UserError: the shapes do not match the names, a name appears twice, there are fewer than five tasks or two
            methods, a score or feature is infinite, or a task or a method has no score.
    """

    tasks: tuple[str, ...]
    features: tuple[str, ...]
    methods: tuple[str, ...]
    values: Array
    scores: Array
    needs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    about: str = ""

    def __post_init__(self) -> None:
        for name, of in (("values", self.features), ("scores", self.methods)):
            array, shape = getattr(self, name), (len(self.tasks), len(of))
            if array.shape != shape:
                raise UserError(f"the knowledge's {name} must have shape {shape} by its names, but have {array.shape}.")
            if np.isinf(array).any():
                raise UserError(f"the knowledge's {name} contain an infinite number: use NaN where nothing is known.")
        for names in (self.tasks, self.features, self.methods):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise UserError(f"the name '{twice[0]}' appears twice in the knowledge: rename one.")
        if len(self.tasks) < FEW_TASKS or len(self.methods) < 2 or not self.features:
            raise UserError(
                f"knowledge needs at least {FEW_TASKS} tasks, 2 methods and 1 feature, but has {len(self.tasks)}, "
                f"{len(self.methods)} and {len(self.features)}: add results."
            )
        known = np.isfinite(self.scores)
        for names, some in ((self.tasks, known.any(1)), (self.methods, known.any(0))):
            if not some.all():
                raise UserError(f"the knowledge has no score for '{names[int(some.argmin())]}': add one or remove it.")

    def subset(self, rows: NDArray[Any]) -> Self:
        """The same methods on some of the tasks, chosen by index or mask."""
        names = np.array(self.tasks, dtype=object)[rows]
        return replace(self, tasks=tuple(names), values=self.values[rows], scores=self.scores[rows])

    def usable(self, available: Iterable[str]) -> Self:
        """The methods for data that have ``available``, on the tasks on which all of these methods were run.

        Then the same tasks decide between all of them. Knowledge without :attr:`needs` is returned as it is.

        Raises:
            UserError: fewer than five tasks or two methods are left.
        """
        if not self.needs:
            return self
        kept = np.array([set(self.needs.get(name, ())) <= set(available) for name in self.methods])
        names = tuple(name for name, one in zip(self.methods, kept, strict=True) if one)
        known: NDArray[np.bool_] = np.asarray(np.isfinite(self.scores[:, kept]).all(1))
        tasks = int(known.sum())
        if len(names) < 2 or tasks < FEW_TASKS:
            raise UserError(
                f"the knowledge has {len(names)} method{'s' * (len(names) != 1)} for such data and {tasks} "
                f"task{'s' * (tasks != 1)} on which all of them were run, but 2 methods and {FEW_TASKS} tasks "
                "are needed: give other knowledge."
            )
        needs = {name: self.needs[name] for name in names if name in self.needs}
        return replace(self, methods=names, scores=self.scores[:, kept], needs=needs).subset(known)

    def plain(self) -> dict[str, Any]:
        """As plain values for JSON, ``None`` in place of NaN; floats keep all their digits."""
        arrays = {name: _without_nan(getattr(self, name)) for name in ("values", "scores")}
        names = {name: list(getattr(self, name)) for name in ("tasks", "features", "methods")}
        needs = {name: list(given) for name, given in self.needs.items()}
        return {**names, **arrays, "needs": needs, "about": self.about}

    @classmethod
    def from_plain(cls, content: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`plain`."""
        tasks, features, methods = (tuple(map(str, content[name])) for name in ("tasks", "features", "methods"))
        values, scores = (np.array(content[name], dtype=np.float64) for name in ("values", "scores"))
        needs = {str(name): tuple(map(str, given)) for name, given in content.get("needs", {}).items()}
        return cls(tasks, features, methods, values, scores, needs, str(content.get("about", "")))


def _without_nan(array: Array) -> list[list[float | None]]:
    return [[None if math.isnan(value) else value for value in row] for row in array.tolist()]


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Writes plain values, completely or not at all."""
    write_atomically(path, json.dumps(content, allow_nan=False, separators=(",", ":")) + "\n")


def read_json(path: str | Path, what: str) -> dict[str, Any]:
    """Reads a file of :func:`write_json`.

    Raises:
        UserError: the file is missing or is not such a file.
    """
    place = check_file(path, what)
    try:
        content = json.loads(place.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{what} '{path}' is not a JSON file: make it with StrategySelector.save.") from error
    if not isinstance(content, dict):
        raise UserError(f"{what} '{path}' is not a knowledge file: make it with StrategySelector.save.")
    return content
