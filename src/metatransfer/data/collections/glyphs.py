"""The character set that the package ships."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from metatransfer.data.collections.base import Collection, LazyParts
from metatransfer.data.readers.glyph_file import GLYPHS_SHA256, glyph_from_image, load_glyphs
from metatransfer.data.sources import SPLITS, Source, TensorSource


class Glyphs(Collection):
    """Characters of many writing systems, 28x28, typeset: works offline, at once.

    Like Omniglot (Lake et al. 2015), but of real typefaces. Training, validation and test have different writing
    systems, so a test task is of scripts never seen.
    """

    divided_by = "class"

    def parts(self) -> Mapping[str, Source]:
        """The characters of each split's writing systems."""
        return LazyParts(_characters, SPLITS)

    def convert(self, item: Image.Image) -> Tensor:
        """A picture of one character, cropped to its ink and scaled as the glyphs are: ``(1, 28, 28)`` in [0, 1]."""
        return torch.from_numpy(glyph_from_image(item).astype(np.float32) / 255).unsqueeze(0)

    def protocol(self) -> dict[str, Any]:
        """The split by writing system and the data's checksum."""
        return {"split": "by writing system", "data_sha256": GLYPHS_SHA256}


def _characters(split: str) -> TensorSource:
    glyphs = load_glyphs()
    scripts = set(glyphs.splits[split])
    chosen = [index for index, script in enumerate(glyphs.scripts) if script in scripts]
    images = torch.from_numpy(glyphs.images[chosen])  # fancy indexing copied, so writing is safe
    return TensorSource(
        images.flatten(0, 1).unsqueeze(1),
        np.arange(len(chosen)).repeat(images.shape[1]),
        [f"{glyphs.scripts[index]} {glyphs.characters[index]}" for index in chosen],
        f"Glyphs {split}",
    )
