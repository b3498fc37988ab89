"""Data sets of labelled images of torchvision."""

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from metatransfer.checks import check_folder, did_you_mean
from metatransfer.data.collections.image_collection import PixelCollection, by_content, gathered, labelled_pixels
from metatransfer.data.sources import SPLITS, Source, TensorSource, UnlabelledPart, without_labels
from metatransfer.errors import UserError, explained, in_short


class TorchvisionDataset(PixelCollection):
    """Labelled images of ``torchvision.datasets``, such as CIFAR10, FashionMNIST, STL10 or GTSRB.

    Works with data sets whose class takes ``train`` or ``split`` and whose labels are one integer per image. The files
    must be in ``root`` in torchvision's layout; nothing is downloaded. Many data sets have no validation split. CIFAR's
    files are pickles, which torchvision reads only if their MD5 is right.

    Args:
        name: name of the class in ``torchvision.datasets``.
        root: ``root`` of that class.
        image_size: side of a sample in pixels: when an image is read, its shorter side is resized bilinearly and the
            centre cropped. Defaults to the size of the images, which must then be the same for all.
        channels: 1 for luminance, 3 for RGB (grey is repeated). Defaults to the channels of the images.
    """

    def __init__(
        self, name: str, root: str, image_size: int | None = None, channels: Literal[1, 3] | None = None
    ) -> None:
        super().__init__(root, image_size, channels)
        self.name = name
        self._kind = _known_class(name)

    def parts(self) -> Mapping[str, Source]:
        """The images of training, test and, if there is one, validation, in memory: ``(C, H, W)``."""
        check_folder(Path(self.root).expanduser(), f"{self.name} folder")
        found = {split: self._opened(split) for split in SPLITS}
        return {split: self._source(split, samples) for split, samples in found.items() if samples is not None}

    def unlabelled_parts(self) -> Mapping[str, UnlabelledPart]:
        """The images in an order without classes: many data sets are sorted by class."""
        sources = {name: source for name, source in self.opened().items() if isinstance(source, TensorSource)}
        return {name: without_labels(by_content(source)) for name, source in sources.items()}

    def protocol(self) -> dict[str, Any]:
        """The data set and the size of its images."""
        return {"name": self.name, **super().protocol()}

    def _opened(self, split: str) -> Any:  # noqa: ANN401
        # the data set of a split; ``None`` if there is no such split
        parameters = inspect.signature(self._kind).parameters
        by_split = "split" in parameters
        if not by_split and split == "val":
            return None
        option: dict[str, Any] = {"split": split} if by_split else {"train": split == "train"}
        if "download" in parameters:
            option["download"] = False
        try:
            return self._kind(root=str(Path(self.root).expanduser()), **option)
        except Exception as error:  # each class raises errors of its own
            if split != "train" and isinstance(error, ValueError) and "argument split" in str(error):
                return None  # the data set has no such split
            raise UserError(
                f"torchvision cannot read {split} of {self.name} from '{self.root}' ({in_short(error)}): put its "
                f"files there as torchvision.datasets.{self.name} lays them out when it downloads them."
            ) from error

    def _source(self, split: str, samples: Any) -> Source:  # noqa: ANN401
        where = f"{self.name} {split}"
        labels: list[int] = []
        data = gathered(self._read(samples, labels, where), len(samples), where)
        return labelled_pixels(data, np.array(labels, np.int64), _class_names(samples, max(labels) + 1), where)

    def _read(self, samples: Any, labels: list[int], where: str) -> Iterator[NDArray[np.uint8]]:  # noqa: ANN401
        # yields the images and appends their labels
        for number in range(len(samples)):
            with explained(f"{where}: sample {number} cannot be read", "download it again"):
                image, label = samples[number][:2]
            pixels = isinstance(image, Image.Image) or (isinstance(image, np.ndarray) and image.dtype == np.uint8)
            if not pixels or not isinstance(label, int | np.integer) or label < 0:
                raise UserError(
                    f"{where}: sample {number} is a {type(image).__name__} with the label {label!s:.40}, but must be "
                    "an image with a class number: use a data set for image classification."
                )
            labels.append(int(label))
            yield self.look(image)


def _known_class(name: str) -> Any:  # noqa: ANN401
    from torchvision import datasets  # type: ignore[import-untyped] # half a second

    known = [one for one in datasets.__all__ if _serves(inspect.signature(getattr(datasets, one)).parameters)]
    if name not in known:
        reason = "takes other arguments than root and train or split" if name in datasets.__all__ else "does not exist"
        raise UserError(
            f"name must be that of a data set of labelled images in torchvision.datasets, but '{name}' {reason}"
            f"{did_you_mean(name, known)}"
        )
    return getattr(datasets, name)


def _serves(parameters: Mapping[str, inspect.Parameter]) -> bool:
    """Whether a class needs only a folder and the name of a split."""
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    needed = {name for name, one in parameters.items() if one.default is one.empty and one.kind not in kinds}
    return "root" in parameters and needed <= {"root"} and bool({"train", "split"} & set(parameters))


def _class_names(samples: Any, count: int) -> list[str]:  # noqa: ANN401
    """The class names of the data set if they are complete and distinct, otherwise numbers."""
    given = getattr(samples, "classes", None)
    given = list(given) if isinstance(given, list | tuple) else []
    names = [one if isinstance(one, str) else ", ".join(map(str, one)) for one in given]
    return names if len(names) >= count and len(set(names)) == len(names) else [str(label) for label in range(count)]
