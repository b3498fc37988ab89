"""The transformer that reads examples: against torch's encoder with a mask."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from metatransfer import UserError
from metatransfer.nn.blocks import ContextTransformer


def torch_encoder(own, width, heads):
    """torch's encoder with the same weights."""
    layer = nn.TransformerEncoderLayer(
        width, heads, 2 * width, dropout=0.0, activation="gelu", norm_first=True, batch_first=True
    )
    encoder = nn.TransformerEncoder(layer, len(own.layers), norm=nn.LayerNorm(width), enable_nested_tensor=False)
    for theirs, ours in zip(encoder.layers, own.layers, strict=True):
        attention = theirs.self_attn
        attention.in_proj_weight = nn.Parameter(torch.cat([ours.query.weight, ours.key_value.weight]))
        attention.in_proj_bias = nn.Parameter(torch.cat([ours.query.bias, ours.key_value.bias]))
        theirs.linear1, theirs.linear2 = ours.perceptron[0], ours.perceptron[2]
        attention.out_proj.load_state_dict(ours.out.state_dict())
        theirs.norm1, theirs.norm2 = ours.norm, ours.second_norm
    return encoder.double()


def test_it_equals_an_encoder_in_which_all_attend_to_the_examples():
    torch.manual_seed(0)
    own = ContextTransformer(8, 3, 2).double()
    examples, queries = torch.randn(2, 3, 5, 8).double(), torch.randn(2, 3, 4, 8).double()
    mask = torch.full((9, 9), -torch.inf).double()
    mask[:, :5] = 0
    together = torch.cat([examples, queries], 2).flatten(0, 1)
    expected = torch_encoder(own, 8, 2)(together, mask=mask)[:, 5:].unflatten(0, (2, 3))
    torch.testing.assert_close(own.answer(own.read(examples), queries), expected, rtol=1e-9, atol=1e-9)


def test_wrong_sizes():
    with pytest.raises(UserError, match="width must be divisible by heads, but got width=10 and heads=4"):
        ContextTransformer(10, 1, 4)
    with pytest.raises(UserError, match="layers"):
        ContextTransformer(8, 0, 4)
