"""Small trees and zips of random pictures, and short ways to open them."""

import zipfile

import numpy as np
import torch
from PIL import Image

from metatransfer.data.readers.image_files import open_tree
from metatransfer.data.readers.image_look import ImageLook
from metatransfer.data.readers.image_source import ImageReader

CPU = torch.device("cpu")
LOOK = ImageLook(6)


def picture(seed, size=(12, 10), mode="RGB"):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def write_tree(root, classes=3, images=4, suffix="png"):
    for c in range(classes):
        for i in range(images):
            path = root / f"class {c}" / f"{i}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(10 * c + i).save(path)
    return root


def write_zip(path, root, prefix=""):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(root.rglob("*")):
            if file.is_file():
                archive.write(file, prefix + file.relative_to(root).as_posix())
    return path


def classes_of(path):
    tree = open_tree(path, "toys")
    return {name: tree.files(name) for name in tree.folders()}


def opened(path, groups=None, **options):
    return ImageReader(LOOK, **options).labelled(classes_of(path), "Toys", groups)


def everything(source):
    return source.read(torch.arange(len(source)), CPU)


def entries(cache):
    return sorted(path.name for path in cache.glob("*"))
