"""The figure of what a machine reads and writes."""

from __future__ import annotations

import torch

from metatransfer.drawing.episodes import to_pixels
from metatransfer.drawing.memory import _used, copy_figure


def test_slots_in_use_are_shown_together_across_the_seam_of_the_ring():
    read, written = torch.zeros(4, 9), torch.zeros(4, 9)
    read[0, 0] = written[1, 8] = written[2, 7] = 1
    assert _used(written, read) == [6, 7, 8, 0, 1]
    assert sorted(_used(torch.ones(4, 9), read)) == list(range(9))


def test_wrong_bits_are_in_the_title():
    bits = torch.tensor([[1.0, 0], [0, 1]])
    places = torch.eye(5)
    figure = copy_figure(torch.rand(5, 3), bits, bits.clone().fill_(0.9), places, places)
    assert figure.get_suptitle() == "one sequence of 2: 2 of 4 bits are wrong"
    assert to_pixels(figure).ndim == 3
