"""Learned rates: names with dots, a start to go back to, nothing to learn refused."""

from __future__ import annotations

import pytest
import torch

from metatransfer import UserError
from metatransfer.nn import LearnedTensors


def test_rates_by_name():
    shapes = {"layer.0.weight": (2, 3), "layer.0.bias": ()}
    rates = LearnedTensors(shapes, 0.5)
    assert {name: tuple(value.shape) for name, value in rates().items()} == shapes
    with torch.no_grad():
        rates()["layer.0.weight"] += 1
    twin = LearnedTensors(shapes, 0.1)
    twin.load_state_dict(rates.state_dict())
    assert torch.equal(twin()["layer.0.weight"], torch.full((2, 3), 1.5))
    rates.reset_parameters()
    assert all((value == 0.5).all() for value in rates.parameters())


def test_no_name_is_refused():
    with pytest.raises(UserError, match="at least one parameter"):
        LearnedTensors({}, 0.1)
