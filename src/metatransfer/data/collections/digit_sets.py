"""The digit data sets that domain adaptation is measured on, from their usual files."""

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from metatransfer.checks import check_folder
from metatransfer.data.collections.image_collection import PixelCollection, gathered, labelled_pixels
from metatransfer.data.readers import digit_files
from metatransfer.data.readers.digit_files import DIGIT_NAMES, DigitFile
from metatransfer.data.sources import Source
from metatransfer.errors import UserError


class DigitSet(PixelCollection):
    """Base class of digit data sets whose files are divided into training and test.

    Attributes:
        title: name of the data set, for messages.
        folders: folders in ``root`` that may hold the files.
        usual_source: who publishes the files.
    """

    title: ClassVar[str]
    folders: ClassVar[tuple[str, ...]]
    usual_source: ClassVar[str]

    @abstractmethod
    def read(self, split: str) -> list[DigitFile]:
        """The files of a split, ``"train"`` or ``"test"``."""

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits of the files."""
        return "train", "test"

    def parts(self) -> Mapping[str, Source]:
        """The digits of training and test, in memory: ``(C, H, W)``, classes ``"0"`` to ``"9"``."""
        try:
            check_folder(Path(self.root).expanduser(), f"{self.title} folder")
        except UserError as error:
            raise UserError(f"{error} Check the path, or put the files of {self.title} there.") from error
        return {split: self._source(split) for split in self.splits}

    def _source(self, split: str) -> Source:
        files = self.read(split)
        labels = np.concatenate([file.labels for file in files])
        where = f"{self.title} {split} ({' and '.join(file.name for file in files)})"
        absent = sorted(set(range(10)) - set(labels.tolist())) if split != "test" else []
        if absent:
            raise UserError(f"{where} has no image of the digit {absent[0]}: it is incomplete; download it again.")
        data = gathered((self.look(image) for file in files for image in file.images), len(labels), where)
        return labelled_pixels(data, labels, DIGIT_NAMES, where)

    @property
    def places(self) -> list[Path]:
        """The folders that may hold the files."""
        return [Path(self.root, folder).expanduser() for folder in self.folders]

    def find(self, *names: str) -> Path | None:
        """The first of these files that exists, by folder and then by name."""
        return next((path for place in self.places for name in names if (path := place / name).is_file()), None)

    def file(self, *names: str) -> Path:
        """The first of these files that exists; raises an error if there is none."""
        found = self.find(*names)
        if found is None:
            raise self.missing(" or ".join(names))
        return found

    def pickle(self, name: str, better: str) -> UserError:
        """The error for a pickle in place of the files."""
        return UserError(
            f"{self.title}: '{name}' in '{self.root}' is a pickle, which can run code when it is read: convert it to "
            f"{better} on a machine where you trust it."
        )

    def missing(self, what: str) -> UserError:
        """The error for missing files."""
        deeper = " or ".join(f"'{folder}'" for folder in self.folders if folder)
        return UserError(
            f"{self.title}: '{self.root}' has no {what}: put it there or into its folder {deeper}; it comes from "
            f"{self.usual_source}."
        )


class MNIST(DigitSet):
    """MNIST: 60000 and 10000 handwritten digits, 28x28, grey, bright on dark (LeCun, Bottou, Bengio and Haffner 1998).

    The idx files ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte`` and
    ``t10k-labels-idx1-ubyte``, plain or with ``.gz``, in ``root``, ``root/raw`` or ``root/MNIST/raw``.
    """

    title, folders = "MNIST", ("", "raw", "MNIST/raw")
    usual_source = "the MNIST page of Yann LeCun, and torchvision has the same layout"

    def read(self, split: str) -> list[DigitFile]:
        """The pair of idx files."""
        stem = {"train": "train", "test": "t10k"}[split]
        names = (f"{stem}-images-idx3-ubyte", f"{stem}-labels-idx1-ubyte")
        return [digit_files.read_idx(*(self.file(name, f"{name}.gz") for name in names))]


class USPS(DigitSet):
    """USPS: 7291 and 2007 handwritten digits of envelopes, 16x16, grey, bright on dark (Hull 1994).

    One of these forms, in ``root`` or ``root/USPS``:

    - the LIBSVM texts ``usps.bz2`` and ``usps.t.bz2``, or unpacked as ``usps`` and ``usps.t``;
    - ``zip.train.gz`` and ``zip.test.gz`` of The Elements of Statistical Learning, or unpacked;
    - ``usps.h5`` with ``train/data``, ``train/target``, ``test/data`` and ``test/target``, which needs h5py;
    - ``USPS.mat`` with ``fea`` (9298 rows of 256 values, row by row of an image) and ``gnd``, the 7291 training images
      first. Labels 1 to 10 are assumed to mean the digits 0 to 9;
    - ``usps_all.mat`` with ``data`` (256, 1100, 10), column by column of an image, 1100 images of each digit. The
      digits are assumed to be in the order 1 to 9, 0. It has no test set, so the data module divides it.
    """

    title, folders = "USPS", ("", "USPS")
    usual_source = "the LIBSVM collection of data sets, and torchvision has the same layout"

    @property
    def splits(self) -> tuple[str, ...]:
        """Not divided if there is only ``usps_all.mat``."""
        divided = ("usps.bz2", "usps", "zip.train.gz", "zip.train", "usps.h5", "USPS.mat")
        return super().splits if self.find(*divided) or not self.find("usps_all.mat") else ("all",)

    def read(self, split: str) -> list[DigitFile]:
        """The file of the first form that is found."""
        if split == "all":
            return [digit_files.read_by_class(self.file("usps_all.mat"), "data", 16)]
        name, rows = {"train": ("usps", "zip.train"), "test": ("usps.t", "zip.test")}[split]
        if (path := self.find(f"{name}.bz2", name)) is not None:
            return [digit_files.read_libsvm(path, 16)]
        if (path := self.find(f"{rows}.gz", rows)) is not None:
            return [digit_files.read_rows(path, 16)]
        if (path := self.find("usps.h5")) is not None:
            return [digit_files.read_hdf5(path, split)]
        if (path := self.find("USPS.mat")) is not None:
            return [digit_files.read_matrix(path, "fea", "gnd", slice(7291) if split == "train" else slice(7291, None))]
        if self.find("usps_28x28.pkl") is not None:
            raise self.pickle("usps_28x28.pkl", "another form, such as usps.h5")
        raise self.missing(f"{name}.bz2, {rows}.gz, usps.h5, USPS.mat or usps_all.mat")


class SVHN(DigitSet):
    """SVHN: 73257 and 26032 digits of house numbers, 32x32, colour (Netzer, Wang, Coates and others 2011).

    The MATLAB files ``train_32x32.mat`` and ``test_32x32.mat``, where label 10 means 0, in ``root`` or ``root/SVHN``.

    Args:
        root: folder of the files.
        image_size: side of a sample in pixels. Defaults to that of the images.
        channels: 1 or 3. Defaults to the channels of the images.
        extra: whether the 531131 easier digits of ``extra_32x32.mat`` are added to the training.
    """

    title, folders = "SVHN", ("", "SVHN")
    usual_source = "the SVHN page of Stanford University, format 2, cropped digits"

    def __init__(
        self, root: str, image_size: int | None = None, channels: Literal[1, 3] | None = None, extra: bool = False
    ) -> None:
        super().__init__(root, image_size, channels)
        self.extra = extra

    def read(self, split: str) -> list[DigitFile]:
        """The MATLAB file, and for training with ``extra`` the second one."""
        stems = [split, "extra"] if self.extra and split == "train" else [split]
        return [digit_files.read_arrays(self.file(f"{stem}_32x32.mat"), "X", "y", count_last=True) for stem in stems]

    def protocol(self) -> dict[str, Any]:
        """The size of the images, and ``extra``."""
        return super().protocol() | {"extra": self.extra}


class SYN(DigitSet):
    """SYN: 479400 and 9553 synthetic typeset digits on coloured backgrounds, 32x32 (Ganin and Lempitsky 1409.7495).

    The MATLAB files ``synth_train_32x32.mat`` and ``synth_test_32x32.mat`` in ``root`` or ``root/SYN``.
    """

    title, folders = "SYN", ("", "SYN")
    usual_source = "Yaroslav Ganin's page, as SynthDigits"

    def read(self, split: str) -> list[DigitFile]:
        """The MATLAB file."""
        return [digit_files.read_arrays(self.file(f"synth_{split}_32x32.mat"), "X", "y", count_last=True)]


class MNISTM(DigitSet):
    """MNIST-M: the digits of MNIST on patches of photographs, in colour (Ganin and Lempitsky 1409.7495).

    One of three layouts, in ``root`` or ``root/mnist_m``:

    - ``train/<label>/<image>`` and ``test/<label>/<image>``;
    - the authors' folders ``mnist_m_train`` and ``mnist_m_test`` of images with ``mnist_m_train_labels.txt`` and
      ``mnist_m_test_labels.txt``, lines ``name label``, beside or in them;
    - ``mnist_m_train.pt`` and ``mnist_m_test.pt``, torch files of the pair (images, labels).

    The authors' images have 32x32 pixels, others' 28x28.
    """

    title, folders = "MNIST-M", ("", "mnist_m")
    usual_source = "Yaroslav Ganin's page"

    def read(self, split: str) -> list[DigitFile]:
        """The first layout that is found."""
        stem = f"mnist_m_{split}"
        tensors = self.find(f"{stem}.pt")
        if tensors is not None:
            return [digit_files.read_arrays(tensors, "x", "y")]
        for place in self.places:
            listings = (folder / f"{stem}_labels.txt" for folder in (place, place / stem))
            listing = next((path for path in listings if path.is_file()), None)
            if listing is not None and (place / stem).is_dir():
                return [digit_files.read_listed(place / stem, listing)]
            if (place / split).is_dir():
                return [digit_files.read_folders(place / split)]
        if self.find("keras_mnistm.pkl") is not None:
            raise self.pickle("keras_mnistm.pkl", f"{stem}.pt, by torch.save((images, labels), path)")
        raise self.missing(f"{split}/<label>/<image>, {stem} with {stem}_labels.txt, or {stem}.pt")
