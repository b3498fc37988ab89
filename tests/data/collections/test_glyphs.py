"""The shipped characters as a collection."""

import torch
from PIL import Image, ImageDraw

from metatransfer.data.collections import Glyphs
from metatransfer.data.readers.glyph_file import GLYPHS_SHA256, load_glyphs


def test_splits_are_writing_systems():
    parts = Glyphs().opened()
    names = {split: set(source.class_names) for split, source in parts.items()}
    assert len(set.union(*names.values())) == sum(map(len, names.values())) == len(load_glyphs().characters)
    source = parts["val"]
    assert source.sample_shape == (1, 28, 28)
    assert len(set(source.sizes.tolist())) == 1
    assert {name.rpartition(" ")[0] for name in source.class_names} == set(load_glyphs().splits["val"])
    again = Glyphs().parts()["val"]
    again.data.zero_()  # a copy: the file's arrays are shared
    assert source.data.any()


def test_pictures_are_made_to_look_like_glyphs():
    picture = Image.new("L", (90, 60), 255)
    ImageDraw.Draw(picture).rectangle([10, 10, 20, 50], fill=0)
    x = Glyphs().convert(picture)
    assert x.shape == (1, 28, 28)
    assert x.dtype == torch.float32
    assert x.max() == 1
    assert Glyphs().protocol()["data_sha256"] == GLYPHS_SHA256
