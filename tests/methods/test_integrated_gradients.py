"""Integrated gradients: they sum to the difference of the answers, and equal a Riemann sum written out here."""

from __future__ import annotations

import sys

import pytest
import torch
from matplotlib.figure import Figure

import messages
from metatransfer import MLP, Conv4, MAMLModule, ProtoNetModule, TokenAverage, Tokens, UserError
from metatransfer.methods.options import InnerLoop

pytest.importorskip("captum")
LABELS = list("abcabc")


def protonet(backbone):
    torch.manual_seed(0)
    return ProtoNetModule(backbone).double().eval()


def prototype_answer(module, x, labels, place):
    """The log-probability of a class by the formula of the paper, as a function of embeddings."""
    classes = sorted(set(labels))
    embedded = module.backbone(x)
    means = torch.stack([embedded[[at for at, one in enumerate(labels) if one == name]].mean(0) for name in classes])
    return lambda features: (-(features.unsqueeze(1) - means).square().sum(-1)).log_softmax(-1)[:, place]


def riemann(answer, query, start, points=2000):
    """The midpoint rule on the straight path."""
    total = torch.zeros_like(query)
    for steps in ((torch.arange(points, dtype=query.dtype) + 0.5) / points).split(250):
        x = (start + steps.view(-1, *[1] * (query.dim() - 1)) * (query - start)).requires_grad_()
        total += torch.autograd.grad(answer(x).sum(), x)[0].sum(0, keepdim=True)
    return ((query - start) * total / points)[0].detach()


@pytest.mark.parametrize(("make", "shape"), [
    (lambda: Conv4(hidden_channels=4), (1, 28, 28)), (lambda: MLP((5,), (16, 16)), (5,)),
], ids=["images", "table"])  # fmt: skip
def test_images_and_tables(make, shape):
    module = protonet(make())
    x = torch.rand(6, *shape, dtype=torch.float64)
    query = torch.rand(1, *shape, dtype=torch.float64)
    found = module.adapt(x, LABELS).explain(query, attribution="integrated_gradients")
    score = prototype_answer(module, x, LABELS, found.classes.index(found.answer))
    start = x.mean(0, keepdim=True)

    def answer(rows):
        return score(module.backbone(rows))

    expected = riemann(answer, query, start)
    difference = float((answer(query) - answer(start)).detach())
    assert found.attributions.shape == shape
    assert found.attributions.dtype == torch.float64
    # the network is piecewise smooth, so that 64 points leave an error, which is reported
    assert float(found.attributions.sum()) - difference == pytest.approx(found.attribution_gap, abs=1e-9)
    assert abs(found.attribution_gap) < 0.01 * float(found.attributions.abs().sum())
    torch.testing.assert_close(found.attributions, expected, rtol=0, atol=0.05 * float(expected.abs().max()))
    assert found.looked_after is None
    assert isinstance(found.figure(), Figure)


def test_texts_by_the_embeddings_of_their_tokens():
    module = protonet(TokenAverage(20, 6, hidden=()))
    texts = Tokens(torch.tensor([[1, 2, 3], [4, 5, 6], [1, 2, 7], [4, 8, 9]]), torch.ones(4, 3, dtype=torch.int64))
    query = Tokens(torch.tensor([[1, 8, 11]]), torch.tensor([[1, 1, 0]]))
    labels = ["a", "b"] * 2
    found = module.adapt(texts, labels).explain(query, attribution="integrated_gradients")
    score = prototype_answer(module, texts, labels, found.classes.index(found.answer))
    embedded = module.backbone.embedding(query.ids)

    def answer(vectors):
        return score(vectors[:, :2].mean(1))

    expected = riemann(answer, embedded.detach(), torch.zeros_like(embedded)).sum(-1)
    torch.testing.assert_close(found.attributions, expected, rtol=1e-4, atol=1e-9)
    assert found.attributions[2] == 0  # padding
    assert isinstance(found.figure(), Figure)


def test_points_of_the_path_do_not_see_each_other():
    """With BatchNorm statistics of the batch, each point is answered as a query alone is."""
    torch.manual_seed(0)
    inner = InnerLoop(steps=2, lr=0.1)
    module = MAMLModule(Conv4(hidden_channels=4), 3, inner=inner, batch_norm="transductive").double().eval()
    x = torch.rand(6, 1, 28, 28, dtype=torch.float64)
    predictor = module.adapt(x, LABELS)
    found = predictor.explain(x[0], attribution="integrated_gradients")
    column = found.classes.index(found.answer)
    ends = [predictor._points(predictor.task, end)[0].log_softmax(-1)[column] for end in (x[:1], x.mean(0)[None])]
    difference = float(ends[0] - ends[1])
    assert float(found.attributions.sum()) - difference == pytest.approx(found.attribution_gap, abs=1e-5)
    assert abs(found.attribution_gap) < 0.05 * abs(difference)


def test_a_regression():
    torch.manual_seed(0)
    module = MAMLModule(MLP((3,), (16,)), 1, inner=InnerLoop(steps=2, lr=0.1)).double()
    x = torch.rand(6, 3, dtype=torch.float64)
    predictor = module.adapt(x, x.sum(1))
    found = predictor.explain(x[0], attribution="integrated_gradients")
    difference = float(predictor.predict(x[:1]).double() - predictor.predict(x.mean(0)[None]).double())
    assert float(found.attributions.sum()) == pytest.approx(difference, abs=0.01 * abs(difference) + 1e-6)


@pytest.mark.parametrize("mistake", ["captum", "name"])
def test_mistakes(mistake, monkeypatch):
    predictor = ProtoNetModule(MLP((3,), (16,))).adapt(torch.rand(4, 3), list("abab"))
    if mistake == "captum":
        monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(UserError) as error:
        predictor.explain(torch.rand(3), "gradients" if mistake == "name" else "integrated_gradients")
    messages.keep(str(error.value))
