"""Episodes as files, so that two people evaluate on the very same tasks."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metatransfer.checks import check_file
from metatransfer.data.sampling.augment import Changes
from metatransfer.data.sampling.episodes import EpisodeIndices, EpisodeSampler, merged, tasks_of
from metatransfer.data.sampling.shapes import EpisodeSize
from metatransfer.data.sources import Source
from metatransfer.errors import UserError, explained
from metatransfer.storage import atomic_file

_FORMAT = "metatransfer episodes 1"
_RAGGED = ("support", "support_y", "query", "query_y", "classes", "turns", "unlabelled")
_LENGTHS = {"support_y": "support", "query_y": "query", "turns": "classes"}


def save_episodes(path: str | Path, sampler: EpisodeSampler, count: int) -> Path:
    """Writes the first ``count`` episodes of a sampler as sample indices, with a hash of the samples they point to.

    The file is a ``.npz`` of flat integer arrays, concatenated over all episodes: ``support``, ``query``,
    ``unlabelled`` (sample indices), ``support_y``, ``query_y`` (labels), ``classes`` (the source's class behind each
    label), ``turns`` (quarter turns of each class, if there are any). ``*_lengths`` split them into episodes, ``keys``
    are their random streams, and ``header`` is JSON. The file is replaced atomically.

    Raises:
        UserError: the folder cannot be written to.
    """
    path = Path(path)
    tasks: list[EpisodeIndices] = []
    for start in range(0, count, 1000):
        for drawn in sampler.draw(np.arange(start, min(start + 1000, count))):
            tasks += [tasks_of(drawn, row, row + 1) for row in range(len(drawn.keys))]
    arrays: dict[str, NDArray[Any]] = {"keys": np.concatenate([task.keys for task in tasks])}
    for name in _RAGGED:
        parts = [getattr(task, name) for task in tasks]
        if parts[0] is None:
            continue
        arrays[name] = np.concatenate([part[0] for part in parts])
        if name not in _LENGTHS:
            arrays[f"{name}_lengths"] = np.array([part.shape[1] for part in parts], dtype=np.int64)
    header = {
        "format": _FORMAT,
        "data": sampler.source.name,
        "split": sampler.split,
        "samples": len(sampler.source),
        "content": sampler.source.fingerprint(),
        "episodes": len(tasks),
    }
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    try:
        with atomic_file(path) as draft, draft.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    except OSError as error:
        raise UserError(
            f"the episodes cannot be written to '{path}' ({error.strerror}): choose another file."
        ) from error
    return path


class PublishedTrials(EpisodeSampler):
    """Serves the ``count`` episodes that were published with the samples, ``source.trials``."""

    def __init__(self, source: Source, split: str, seed: int, changes: Changes) -> None:
        assert source.trials is not None
        self.support, self.query = source.trials
        self.classes = np.stack([np.unique(row) for row in source.labels[self.support]])
        self.count, ways = self.classes.shape
        size = EpisodeSize(ways, self.support.shape[1] // ways, self.query.shape[1] // ways)
        super().__init__(source, split, seed, size, changes=changes)

    def draw(self, indices: NDArray[np.int64]) -> list[EpisodeIndices]:
        """Episodes by their index."""
        support, query, classes = self.support[indices], self.query[indices], self.classes[indices]
        labels = [(self.source.labels[one][..., None] > classes[:, None]).sum(-1) for one in (support, query)]
        return [EpisodeIndices(support, labels[0], query, labels[1], classes, self._keys(indices))]


class SavedEpisodes(EpisodeSampler):
    """Serves the ``count`` episodes of a file that :func:`save_episodes` wrote, in place of those of a sampler.

    The file must be made from the samples of the sampler's source; ``size`` is the required size of every episode.
    """

    def __init__(self, sampler: EpisodeSampler, path: str | Path, size: EpisodeSize | None = None) -> None:
        super().__init__(sampler.source, sampler.split, sampler.seed, sampler.size, changes=sampler.changes)
        self.path = check_file(path, "episode file")
        self._arrays, header = _read(self.path)
        if header.get("content") != self.source.fingerprint():
            raise UserError(
                f"'{self.path}' contains episodes of {header.get('data')} ({header.get('samples')} samples), but the "
                f"samples of {self.source.name} ({len(self.source)}) are not the same: give the data, size and split "
                "that the file was made from."
            )
        self.count = len(self._arrays["keys"])
        self._ends = {
            name: np.concatenate([[0], np.cumsum(self._arrays[f"{_LENGTHS.get(name, name)}_lengths"])])
            for name in _RAGGED
            if name in self._arrays
        }
        self._check()
        if size is not None and self.sizes() != {size}:
            found = ", ".join(f"{one.num_ways}-way {one.num_shots:g}-shot" for one in sorted(self.sizes())[:3])
            raise UserError(
                f"'{self.path}' contains {found} episodes with {max(one.num_queries for one in self.sizes()):g} "
                f"queries per class, but eval_task asks for {size.num_ways}-way {size.num_shots}-shot with "
                f"{size.num_queries}: set num_ways, num_shots and num_queries of eval_task to those of the file."
            )

    def _check(self) -> None:
        """Raises an error for arrays that do not fit each other or the source: a file may be damaged or forged."""
        arrays, source, count = self._arrays, self.source, self.count
        fits = all(
            self._ends[name][-1] == len(arrays[name])
            and len(self._ends[name]) == count + 1
            and (np.diff(self._ends[name]) > 0).all()
            for name in self._ends
        )
        samples = [arrays[name] for name in ("support", "query", "unlabelled") if name in arrays]
        fits = fits and all(len(one) and 0 <= one.min() <= one.max() < len(source) for one in samples)
        fits = fits and 0 <= arrays["classes"].min() <= arrays["classes"].max() < len(source.class_names)
        for name in ("support", "query") if fits else ():
            task = np.repeat(np.arange(count), np.diff(self._ends[name]))
            labels, first = arrays[f"{name}_y"], self._ends["classes"][task]
            fits = fits and bool(((labels >= 0) & (labels < self._ends["classes"][task + 1] - first)).all())
            fits = fits and bool((source.labels[arrays[name]] == arrays["classes"][first + labels]).all())
        if not fits:
            raise UserError(f"'{self.path}' is damaged: its indices and labels do not match; get it again.")

    def sizes(self) -> set[EpisodeSize]:
        """The different ``(num_ways, num_shots, num_queries)``, means over classes where they are uneven."""
        ways, support, query = (np.diff(self._ends[name]) for name in ("classes", "support", "query"))
        found = zip(ways.tolist(), (support / ways).tolist(), (query / ways).tolist(), strict=True)
        return {EpisodeSize(*one) for one in found}

    def draw(self, indices: NDArray[np.int64]) -> list[EpisodeIndices]:
        """Episodes by their index in the file."""
        return merged([self._indices(int(index)) for index in indices])

    def _indices(self, task: int) -> EpisodeIndices:
        parts = {name: self._arrays[name][None, ends[task] : ends[task + 1]] for name, ends in self._ends.items()}
        return EpisodeIndices(keys=self._arrays["keys"][task : task + 1], **parts)


def _read(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """The arrays and the header of a file, or an error if it is not a file of episodes."""
    problem = f"'{path}' is not a file of episodes (format '{_FORMAT}')"
    with explained(problem, "give one that files.export wrote", quoted=False):
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        header = json.loads(arrays.pop("header").tobytes())
        needed = {"keys", *_RAGGED, "support_lengths", "query_lengths", "classes_lengths"} - {"turns", "unlabelled"}
        wrong = [name for name, array in arrays.items() if array.ndim != 1 or array.dtype.kind not in "iu"]
        if header.get("format") != _FORMAT or not needed <= arrays.keys() or wrong or not len(arrays["keys"]):
            raise ValueError(_FORMAT)
        arrays = {name: array.astype(np.uint64 if name == "keys" else np.int64) for name, array in arrays.items()}
    return arrays, header
