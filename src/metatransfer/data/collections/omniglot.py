"""Omniglot with the splits of published results."""

import contextlib
import warnings
from collections.abc import Mapping
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from metatransfer.checks import check_choice
from metatransfer.data.collections.image_collection import ImageCollection
from metatransfer.data.readers.fetching import fetch
from metatransfer.data.readers.image_files import ImageTree, open_tree
from metatransfer.data.readers.image_look import ImageLook, file_bytes
from metatransfer.data.readers.image_source import ImageReader, OnBadSample
from metatransfer.data.sources import SPLITS, LazyParts, Source
from metatransfer.errors import UserError
from metatransfer.functional.random import random_permutations, stream_keys

Protocol = Literal["vinyals", "maml", "lake"]

_MIRRORS = (
    "https://raw.githubusercontent.com/brendenlake/omniglot/master/python",
    "https://github.com/brendenlake/omniglot/raw/master/python",
)
_DRAWINGS = 20  # of every character
_MAML_SEED = 2017


_PARTS = {  # number of characters, MD5 of the zip file
    "images_background": (964, "68d2efa1b9178cc56df9314c21c6e718"),
    "images_evaluation": (659, "6b91aef0f799c5bb55b94e3f2daec811"),
}
_PROTOCOLS: dict[str, tuple[str, Literal["none", "classes", "per_class"]]] = {
    "vinyals": ("Vinyals 2016, 1028/172/423 characters", "classes"),
    "maml": ("random 1100/100/423 characters", "per_class"),
    "lake": ("Lake 2015, background 25 + 5 alphabets / evaluation 20 alphabets", "none"),
}
# chosen here, since the background set is undivided: different families, enough characters for 20 ways
_LAKE_VAL = frozenset({"Armenian", "Futurama", "Hebrew", "Korean", "Sanskrit"})


class Omniglot(ImageCollection):
    """Handwritten characters, 1623 of 50 alphabets, 20 drawings each (Lake et al. 2015).

    Reads the layout of torchvision, ``omniglot-py/images_background/<Alphabet>/<character>/<drawing>.png`` and
    ``images_evaluation``, or the two zip files. Samples are ``(1, H, W)``, one minus the pixel. The group of a
    character is its alphabet.

    ======== ======================== =========== ==========================================================
    protocol train / val / test       rotations   episodes
    ======== ======================== =========== ==========================================================
    vinyals  1028 / 172 / 423 by list as classes  4112 / 688 / 1692 classes (Snell et al. 2017, 1703.05175)
    maml     1100 / 100 / 423 random  per class   as Finn et al. 2017 (1703.03400), but with a fixed draw, since
                                                  theirs depends on the order of a folder
    lake     25 / 5 / 20 alphabets    none        within one alphabet (Lake et al. 2015, 2019: 1902.03477); validation
                                                  on Armenian, Futurama, Hebrew, Korean and Sanskrit of the background
    ======== ======================== =========== ==========================================================

    Args:
        root: the folder that contains ``omniglot-py``, or that folder itself.
        protocol: ``"vinyals"``, ``"maml"`` or ``"lake"``.
        image_size: side of a sample in pixels.
        download: whether to download missing zip files into ``root``; they are read without unpacking.
        on_bad_sample: ``"error"``, or ``"skip"`` to leave out and count unusable drawings.
        runs: folder or zip file, relative to ``root``, of Lake's twenty one-shot runs (``all_runs.zip``), with
            ``run01/class_labels.txt``, ``run01/training`` and ``run01/test``: with protocol ``lake``, the test consists
            of these episodes, 20-way 1-shot with one query per class.
    """

    divided_by = "class"

    def __init__(
        self,
        root: str,
        protocol: Protocol = "vinyals",
        image_size: int = 28,
        download: bool = False,
        on_bad_sample: OnBadSample = "error",
        runs: str | None = None,
    ) -> None:
        check_choice("protocol", protocol, tuple(_PROTOCOLS))
        self.root = Path(root).expanduser()
        self.split_protocol = protocol
        self.reader = ImageReader(ImageLook(image_size, channels=1, rule="resize", invert=True), on_bad_sample)
        self.download = download
        if runs is not None and protocol != "lake":
            raise UserError(f"runs are tests of protocol 'lake', but protocol is '{protocol}': set it to lake.")
        self.runs = runs
        self.rotations = dict.fromkeys(SPLITS, _PROTOCOLS[protocol][1])
        self.within_groups = protocol == "lake"

    def prepare(self) -> None:
        """Downloads missing files if ``download`` is set."""
        # errors are raised by parts() in every process; raised in one process here, they would leave the others waiting
        with contextlib.suppress(UserError):
            for part in _PARTS:
                self._place(part)

    def parts(self) -> Mapping[str, Source]:
        """The characters of each split, named ``<Alphabet>/<character>``."""
        return LazyParts(self._drawings, SPLITS)

    def protocol(self) -> dict[str, Any]:
        """The name of the split and the size of the images."""
        tests = ", test on the published one-shot runs" if self.runs is not None else ""
        split = f"{self.split_protocol} ({_PROTOCOLS[self.split_protocol][0]}{tests})"
        return {"split": split, **super().protocol()}

    def _published_runs(self, root: Path) -> Source:
        """The drawings of the runs: a class for each training drawing, which is followed by its test drawings."""
        tree = open_tree(root, "one-shot runs")
        tests = {run: _pairs(tree, run) for run in tree.folders()}
        classes: dict[str, list[str]] = {name: [name] for pairs in tests.values() for name in sorted(pairs.values())}
        for test, training in (pair for pairs in tests.values() for pair in pairs.items()):
            classes[training].append(test)
        if len({len(one) for pairs in tests.values() for one in (pairs, set(pairs.values()))}) != 1:
            raise UserError(
                f"'{root}' must hold runs of one size, with one test drawing per class: get all_runs again."
            )
        place = {name: index for index, name in enumerate(name for names in classes.values() for name in names)}
        missing = [name for name in place if tree.find(name) is None]
        if missing:
            raise UserError(f"'{root}' has no {missing[0]}, which its class_labels.txt names: get all_runs again.")
        files = {name: [file for one in names if (file := tree.find(one))] for name, names in classes.items()}
        # an episode without a drawing would be another one
        reader = replace(self.reader, on_bad_sample="error")
        source, self.skipped["test"] = reader.labelled(
            files, "Omniglot test", {name: name.partition("/")[0] for name in classes}
        )
        support = np.array([[place[name] for name in sorted(pairs.values())] for pairs in tests.values()])
        source.trials = support, np.array([[place[name] for name in pairs] for pairs in tests.values()])
        return source

    def _drawings(self, split: str) -> Source:
        if split == "test" and self.runs is not None:
            return self._published_runs(self.root / Path(self.runs).expanduser())
        characters = self._characters(split)
        trees = {name: tree for part in self._trees.values() for name, tree in part.items()}
        files = {name: trees[name].files(name) for name in characters}
        odd = [name for name in characters if len(files[name]) != _DRAWINGS]
        if odd:
            warnings.warn(
                f"Omniglot in '{self.root}': {len(odd)} of {len(characters)} {split} characters do not have their "
                f"{_DRAWINGS} drawings, e.g. {odd[0]} has {len(files[odd[0]])}: results are not comparable.",
                stacklevel=2,
            )
        groups = {name: name.partition("/")[0] for name in characters}
        source, self.skipped[split] = self.reader.labelled(files, f"Omniglot {split}", groups)
        return source

    def _characters(self, split: str) -> list[str]:
        background, evaluation = map(list, self._trees.values())
        if self.split_protocol == "vinyals":
            listed, known = vinyals_split(split), {*background, *evaluation}
            missing = [name for name in listed if name not in known]
            if missing:
                raise UserError(
                    f"Omniglot in '{self.root}' lacks {len(missing)} characters of the {split} split, e.g. "
                    f"{missing[0]}: use the complete images_background and images_evaluation."
                )
            return list(listed)
        if self.split_protocol == "maml":
            everything = sorted(background + evaluation)
            order = random_permutations(stream_keys(np.array([_MAML_SEED])), len(everything))[0]
            start, stop = {"train": (0, 1100), "val": (1100, 1200), "test": (1200, None)}[split]
            return [everything[index] for index in order[start:stop]]
        if split == "test":
            return evaluation
        return [name for name in background if (name.partition("/")[0] in _LAKE_VAL) == (split == "val")]

    @cached_property
    def _trees(self) -> dict[str, dict[str, ImageTree]]:
        """The files of each part, by character."""
        found = {}
        for part, (count, _) in _PARTS.items():
            tree = open_tree(self._place(part), "Omniglot")
            found[part] = {f"{alphabet}/{name}": tree for alphabet in tree.folders() for name in tree.folders(alphabet)}
            if len(found[part]) != count:
                raise UserError(
                    f"'{tree.root}' has {len(found[part])} characters in {len(tree.folders())} alphabets, but {part} "
                    f"of Omniglot has {count}: unpack the complete {part}.zip, or use the zip file itself."
                )
        return found

    def _place(self, part: str) -> Path:
        for name in (part, f"{part}.zip"):
            for candidate in (self.root / name, self.root / "omniglot-py" / name):
                if candidate.exists():
                    return candidate
        target = self.root / f"{part}.zip"
        if not self.download:
            raise UserError(
                f"Omniglot is not complete in '{self.root}': put {part}.zip (from {_MIRRORS[0]}) or the folder "
                f"{part} there, or set download=true."
            )
        fetch([f"{mirror}/{target.name}" for mirror in _MIRRORS], _PARTS[part][1], target)
        return target


def _pairs(tree: ImageTree, run: str) -> dict[str, str]:
    """The training drawing of the class of each test drawing of a run."""
    labels = tree.find(f"{run}/class_labels.txt")
    lines = file_bytes(labels).decode("utf-8", "replace").split("\n") if labels is not None else []
    fields = [line.split() for line in lines if line.strip()]
    if not fields or any(len(one) != 2 for one in fields):
        raise UserError(
            f"'{tree.root}' must hold the one-shot runs, with lines 'run01/test/item01.png run01/training/class08.png' "
            f"in run01/class_labels.txt, but {run} does not: get all_runs of one-shot-classification."
        )
    return {test: training for test, training in fields}


@cache
def vinyals_split(split: str) -> tuple[str, ...]:
    """The characters of a split of Vinyals et al. 2016 (1606.04080), as published with Snell et al. 2017."""
    lines = (Path(__file__).parents[1] / "omniglot_vinyals.txt").read_text(encoding="utf-8").splitlines()
    names = []
    for line in lines:
        if line.startswith(f"{split} "):
            _, alphabet, numbers = line.split()
            first, last = map(int, numbers.split("-"))
            names += [f"{alphabet}/character{number:02d}" for number in range(first, last + 1)]
    return tuple(names)
