"""Batch normalisation with its own second derivative, against torch's."""

import pytest
import torch
import torch.nn.functional as F

from metatransfer.functional import batch_norm


def tensors(shape, layout=torch.contiguous_format):
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64)
    x = (x.to(memory_format=layout) if x.dim() == 4 else x).requires_grad_()
    weight = torch.tensor([1.5, -0.7, 0.0], dtype=torch.float64, requires_grad=True)
    return x, weight, torch.randn(3, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(5, 3), (4, 3, 6), (4, 3, 5, 2)])
def test_value_and_both_derivatives_are_torchs(shape, layout):
    inputs = tensors(shape, layout)
    found = []
    for function in (batch_norm, lambda x, w, b, eps: F.batch_norm(x, None, None, w, b, True, 0.0, eps)):
        outputs = function(*inputs, 1e-2)
        first = torch.autograd.grad(outputs.sin().sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum((g.cos() * g).sum() for g in first), inputs)
        found.append([outputs, *first, *second])
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-11, atol=1e-11)


def test_derivatives_are_those_of_finite_differences():
    inputs = tensors((4, 3, 3))
    assert torch.autograd.gradcheck(lambda x, w, b: batch_norm(x, w, b, 1e-2), inputs)
    assert torch.autograd.gradgradcheck(lambda x, w, b: batch_norm(x, w, b, 1e-2), inputs)


@pytest.mark.parametrize("in_dims", [(0, 0, 0), (0, None, None), (1, None, 0), (None, 0, 1)])
def test_mapped_is_each_by_itself(in_dims):
    torch.manual_seed(1)
    shapes = ((4, 3, 5), (3,), (3,))
    inputs = []
    for shape, dim in zip(shapes, in_dims, strict=True):
        value = torch.randn(shape if dim is None else (2, *shape), dtype=torch.float64)
        inputs.append((value if dim is None else value.movedim(0, dim).contiguous()).requires_grad_())
    mapped = torch.func.vmap(lambda *task: batch_norm(*task, 1e-2), in_dims)(*inputs)
    alone = [
        batch_norm(*(v if d is None else v.select(d, task) for v, d in zip(inputs, in_dims, strict=True)), 1e-2)
        for task in range(2)
    ]
    torch.testing.assert_close(mapped, torch.stack(alone), rtol=1e-12, atol=1e-12)
    seconds = []
    for outputs in (mapped, torch.stack(alone)):
        first = torch.autograd.grad(outputs.sin().sum(), inputs, create_graph=True)
        seconds.append(torch.autograd.grad(sum(g.square().sum() for g in first), inputs))
    for one, two in zip(*seconds, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-11, atol=1e-11)


def test_third_derivatives_are_refused_and_not_wrong():
    x, weight, bias = tensors((5, 3))
    [first] = torch.autograd.grad(batch_norm(x, weight, bias, 1e-2).sin().sum(), [x], create_graph=True)
    [second] = torch.autograd.grad(first.square().sum(), [x], create_graph=True)
    with pytest.raises(RuntimeError, match="no third derivative"):
        torch.autograd.grad(second.square().sum(), [x])
