"""The benchmarks CIFAR-FS and FC100, made of CIFAR-100."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from metatransfer.checks import check_choice
from metatransfer.data.readers.cifar_files import Pool, find_cifar, read_cifar
from metatransfer.data.readers.image_look import ImageLook
from metatransfer.data.sources import SPLITS, Collection, LazyParts, Source, TensorSource
from metatransfer.errors import UserError

Benchmark = Literal["cifar_fs", "fc100"]

SUPERCLASSES = {
    "aquatic_mammals": ("beaver", "dolphin", "otter", "seal", "whale"),
    "fish": ("aquarium_fish", "flatfish", "ray", "shark", "trout"),
    "flowers": ("orchid", "poppy", "rose", "sunflower", "tulip"),
    "food_containers": ("bottle", "bowl", "can", "cup", "plate"),
    "fruit_and_vegetables": ("apple", "mushroom", "orange", "pear", "sweet_pepper"),
    "household_electrical_devices": ("clock", "keyboard", "lamp", "telephone", "television"),
    "household_furniture": ("bed", "chair", "couch", "table", "wardrobe"),
    "insects": ("bee", "beetle", "butterfly", "caterpillar", "cockroach"),
    "large_carnivores": ("bear", "leopard", "lion", "tiger", "wolf"),
    "large_man-made_outdoor_things": ("bridge", "castle", "house", "road", "skyscraper"),
    "large_natural_outdoor_scenes": ("cloud", "forest", "mountain", "plain", "sea"),
    "large_omnivores_and_herbivores": ("camel", "cattle", "chimpanzee", "elephant", "kangaroo"),
    "medium_mammals": ("fox", "porcupine", "possum", "raccoon", "skunk"),
    "non-insect_invertebrates": ("crab", "lobster", "snail", "spider", "worm"),
    "people": ("baby", "boy", "girl", "man", "woman"),
    "reptiles": ("crocodile", "dinosaur", "lizard", "snake", "turtle"),
    "small_mammals": ("hamster", "mouse", "rabbit", "shrew", "squirrel"),
    "trees": ("maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"),
    "vehicles_1": ("bicycle", "bus", "motorcycle", "pickup_truck", "train"),
    "vehicles_2": ("lawn_mower", "rocket", "streetcar", "tank", "tractor"),
}
_SUPERCLASS_OF = {name: superclass for superclass, names in SUPERCLASSES.items() for name in names}
# Bertinetto et al. 2019 drew the classes at random; a class in neither list is a training class
_CIFAR_FS = {
    "val": "beaver otter flatfish shark lamp television beetle butterfly sea camel cattle crab crocodile maple_tree "
    "motorcycle tractor",
    "test": "whale poppy rose sweet_pepper telephone bed table wardrobe leopard plain chimpanzee fox snail worm baby "
    "man woman bicycle pickup_truck rocket",
}
# Oreshkin et al. 2018 divide by superclass, so that test classes differ more from training classes
_FC100 = {
    "val": "large_carnivores large_omnivores_and_herbivores non-insect_invertebrates small_mammals",
    "test": "aquatic_mammals insects medium_mammals people",
}
_BENCHMARKS = {
    "cifar_fs": "CIFAR-FS (Bertinetto 2019), 64/16/20 classes",
    "fc100": "FC100 (Oreshkin 2018), 12/4/4 superclasses, 60/20/20 classes",
}


def benchmark_classes(benchmark: Benchmark, split: str) -> tuple[str, ...]:
    """The classes of CIFAR-100 in a split of a benchmark."""
    listed = _CIFAR_FS if benchmark == "cifar_fs" else _FC100
    split_of = {name: part for part, names in listed.items() for name in names.split()}
    chosen = [
        name
        for name, superclass in _SUPERCLASS_OF.items()
        if split_of.get(name if benchmark == "cifar_fs" else superclass, "train") == split
    ]
    return tuple(sorted(chosen))


class CIFARFewShot(Collection):
    """CIFAR-FS and FC100: the 100 classes of CIFAR-100, 600 colour images of 32x32 each, divided by published lists.

    Reads CIFAR-100 as its authors distribute it: ``cifar-100-binary`` or, if that is missing, ``cifar-100-python``,
    the version that torchvision downloads. The latter are pickles, which are loaded only if their MD5 is the authors'.
    Training and test images of CIFAR-100 are pooled, as in both benchmarks. The group of a class is its superclass.

    Args:
        root: the folder that contains ``cifar-100-binary`` or ``cifar-100-python``, or one of these itself.
        benchmark: ``"cifar_fs"`` (Bertinetto et al. 2019, 1805.08136) or ``"fc100"`` (Oreshkin et al. 2018,
            1805.10123).
        download: whether to download ``cifar-100-binary`` (161 MB) if neither is there.

    Raises:
        UserError: an unknown benchmark.
    """

    divided_by = "class"

    def __init__(self, root: str, benchmark: Benchmark = "cifar_fs", download: bool = False) -> None:
        check_choice("benchmark", benchmark, tuple(_BENCHMARKS))
        self.root = Path(root).expanduser()
        self.benchmark: Benchmark = benchmark
        self.download = download
        self.look = ImageLook(32)

    def prepare(self) -> None:
        """Downloads CIFAR-100 if ``download`` is set."""
        # errors are raised by parts() in every process; raised in one process here, they would leave the others waiting
        with contextlib.suppress(UserError):
            find_cifar(self.root, self.download)

    def parts(self) -> Mapping[str, Source]:
        """The classes of each split with 600 images each, those of CIFAR-100's training set first."""
        return LazyParts(self._classes, SPLITS)

    def convert(self, item: Image.Image) -> Tensor:
        """An image, resized by its shorter side and cropped at the centre: ``(3, 32, 32)`` in [0, 1]."""
        return self.look.sample(item)

    def protocol(self) -> dict[str, Any]:
        """The benchmark's split."""
        return {"split": _BENCHMARKS[self.benchmark]}

    @cached_property
    def _pool(self) -> Pool:
        return read_cifar(find_cifar(self.root, self.download), list(_SUPERCLASS_OF))

    def _classes(self, split: str) -> TensorSource:
        images, labels, known = self._pool
        names = benchmark_classes(self.benchmark, split)
        new_label = np.full(len(known), -1)
        new_label[[known.index(name) for name in names]] = np.arange(len(names))
        members = np.flatnonzero(new_label[labels] >= 0)
        return TensorSource(
            torch.from_numpy(images[members].reshape(-1, 3, 32, 32)),
            new_label[labels[members]],
            names,
            f"{_BENCHMARKS[self.benchmark].partition(' ')[0]} {split}",
            [_SUPERCLASS_OF[name] for name in names],
        )
