"""The character set that the package ships."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from metatransfer.data.readers.glyph_file import GLYPHS_SHA256, glyph_from_image, load_glyphs
from metatransfer.data.sources import SPLITS, Collection, LazyParts, Source, TensorSource


class Glyphs(Collection):
    """Typeset characters of many writing systems, 28x28, shipped with the package.

    Like Omniglot (Lake et al. 2015), but from typefaces. Training, validation and test have different writing systems,
    so test tasks consist of unseen scripts.
    """

    divided_by = "class"

    def parts(self) -> Mapping[str, Source]:
        """The characters of each split's writing systems."""
        return LazyParts(_characters, SPLITS)

    def convert(self, item: Image.Image) -> Tensor:
        """An image of one character, cropped to its ink and scaled like the glyphs: ``(1, 28, 28)`` in [0, 1]."""
        return torch.from_numpy(glyph_from_image(item).astype(np.float32) / 255).unsqueeze(0)

    def protocol(self) -> dict[str, Any]:
        """The split by writing system and the data's checksum."""
        return {"split": "by writing system", "data_sha256": GLYPHS_SHA256}


def _characters(split: str) -> TensorSource:
    glyphs = load_glyphs()
    scripts = set(glyphs.splits[split])
    chosen = [index for index, script in enumerate(glyphs.scripts) if script in scripts]
    images = torch.from_numpy(glyphs.images[chosen])  # fancy indexing copies, so the tensor is writable
    return TensorSource(
        images.flatten(0, 1).unsqueeze(1),
        np.arange(len(chosen)).repeat(images.shape[1]),
        [f"{glyphs.scripts[index]} {glyphs.characters[index]}" for index in chosen],
        f"Glyphs {split}",
    )
