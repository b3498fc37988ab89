"""Episodes of the character set that the package ships."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from metatransfer.data.episodic import EpisodicDataModule
from metatransfer.data.glyphs import GLYPHS_SHA256, glyph_from_image, load_glyphs
from metatransfer.data.sources import TensorSource


class GlyphEpisodes(EpisodicDataModule):
    """Characters of many writing systems, 28x28, typeset: works offline, at once.

    Like Omniglot (Lake et al. 2015), but of real typefaces. Training, validation and test have different writing
    systems, so a test task is of scripts never seen. An episode's classes are drawn from all characters of its split.
    """

    def source(self, split: str) -> TensorSource:
        """The characters of the split's writing systems."""
        glyphs = load_glyphs()
        scripts = set(glyphs.splits[split])
        chosen = [index for index, script in enumerate(glyphs.scripts) if script in scripts]
        images = torch.from_numpy(glyphs.images[chosen])  # fancy indexing copied, so writing is safe
        renderings = images.shape[1]
        return TensorSource(
            images.flatten(0, 1).unsqueeze(1),
            np.arange(len(chosen)).repeat(renderings),
            [f"{glyphs.scripts[index]} {glyphs.characters[index]}" for index in chosen],
            f"Glyphs {split}",
        )

    def convert_image(self, image: Image.Image) -> Tensor:
        """A picture of one character, cropped to its ink and scaled as the glyphs are: ``(1, 28, 28)`` in [0, 1]."""
        return torch.from_numpy(glyph_from_image(image).astype(np.float32) / 255).unsqueeze(0)

    def protocol(self) -> dict[str, Any]:
        """As of the base, with the split by writing system and the data's checksum."""
        return super().protocol() | {"split": "by writing system", "data_sha256": GLYPHS_SHA256}
