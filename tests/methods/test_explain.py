"""Explanations: influence is learning without a sample, and the network's looks are Grad-CAM."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pytest
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

import messages
from contract import canaries, configs_of, episode, method_of, small
from metatransfer import MLP, Conv4, EpisodicModule, MAMLModule, ProtoNetModule, TokenAverage, Tokens, UserError
from metatransfer.methods.options import InnerLoop


def adapted(module, shots=2):
    batch = episode(tasks=1, shots=shots)
    x, labels = batch.support_x[0], [("owl", "cat", "dog")[label] for label in batch.support_y[0].tolist()]
    return module.adapt(x, labels), x, labels, batch.query_x[0][0]


@pytest.mark.parametrize("path", canaries(configs_of(EpisodicModule), "protonet", "maml"))
def test_influence_is_what_learning_without_the_sample_changes(path):
    predictor, x, labels, query = adapted(small(method_of(path)))
    found = predictor.explain(query)
    assert found.answer == predictor.predict(query[None])[0]
    column = found.classes.index(found.answer)
    whole = predictor.outputs(query[None])[0].double().log_softmax(-1)[column]
    for left in range(len(labels)):
        kept = [place for place in range(len(labels)) if place != left]
        again = predictor.module.adapt(x[kept], [labels[place] for place in kept])
        assert found.influence[left] == whole - again.outputs(query[None])[0].double().log_softmax(-1)[column]
    assert (found.influence != 0).any()
    for map_ in (found.looked_before, found.looked_after):
        assert map_ is None or (map_.shape == query.shape[1:] and map_.min() >= 0 and map_.max() <= 1)
    assert isinstance(found.figure(), Figure)
    assert {line.partition(":")[0] for line in str(found).splitlines()} == {"owl", "cat", "dog"}


def test_grad_cam_is_that_of_the_paper():
    """Against a plain implementation on the network itself (Selvaraju et al. 2017, Eq. 1 and 2)."""
    torch.manual_seed(0)
    module = ProtoNetModule(Conv4(hidden_channels=6)).eval()
    predictor, *_, query = adapted(module)
    found = predictor.explain(query).looked_after
    last = module.backbone.layers[13]  # the normalisation before the last pooling
    kept = []
    handle = last.register_forward_hook(lambda layer, inputs, output: kept.append(output))
    embedded = module.backbone(query[None])
    handle.remove()
    logits = -(embedded - predictor.state[0]).square().sum(-1)
    maps, best = kept[0], logits.argmax()
    gradient = torch.autograd.grad(logits.log_softmax(-1)[best], maps)[0]
    cam = sum(gradient[0, k].mean() * maps[0, k] for k in range(6)).relu()
    cam = F.interpolate(cam[None, None], (28, 28), mode="bilinear", align_corners=False)[0, 0].detach()
    torch.testing.assert_close(found, cam / cam.max(), rtol=1e-4, atol=1e-5)


def test_looks_change_only_where_the_network_adapts():
    torch.manual_seed(0)
    metric = adapted(ProtoNetModule(Conv4(hidden_channels=4)))
    assert metric[0].explain(metric[-1]).looked_before is None
    gradient = adapted(MAMLModule(Conv4(hidden_channels=4), 3, inner=InnerLoop(steps=5, lr=0.4)))
    found = gradient[0].explain(gradient[-1])
    assert found.looked_before is not None
    assert not torch.equal(found.looked_before, found.looked_after)
    still = adapted(MAMLModule(Conv4(hidden_channels=4), 3, inner=InnerLoop(steps=0, lr=0.4)))
    found = still[0].explain(still[-1])
    assert torch.equal(found.looked_before, found.looked_after)


def test_distances_are_those_of_the_adapted_features():
    torch.manual_seed(0)
    module = ProtoNetModule(MLP((3,), (16,))).eval()
    x = torch.rand(6, 3)
    found = module.adapt(x, list("ababab")).explain(x[4])
    with torch.no_grad():
        expected = (module.backbone(x) - module.backbone(x[4:5])).norm(dim=1)
    torch.testing.assert_close(found.distances, expected)
    assert found.distances.argmin() == 4
    adapting = MAMLModule(MLP((3,), (16,)), 2, inner=InnerLoop(steps=3, lr=0.5))
    predictor = adapting.adapt(x, list("ababab"))
    adapted_weights = {
        name.removeprefix("backbone."): value[0]
        for name, value in predictor.state.params.items()
        if name.startswith("backbone.")
    }
    with torch.no_grad():
        features = torch.func.functional_call(adapting.backbone, adapted_weights, (x,))
        still = (adapting.backbone(x) - adapting.backbone(x[4:5])).norm(dim=1)
    moved = predictor.explain(x[4]).distances
    torch.testing.assert_close(moved, (features - features[4]).norm(dim=1), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(moved, still, rtol=1e-3)


def test_the_only_sample_of_a_class_has_an_infinite_influence():
    predictor, *_, query = adapted(ProtoNetModule(Conv4(hidden_channels=4)), shots=1)
    found = predictor.explain(query[None])
    own = found.labels.index(found.answer)
    assert found.influence[own] == torch.inf
    assert found.influence.isfinite().sum() == 2
    assert f"sample {own} is its only one" in str(found)
    plt.close(found.figure())


def test_regression_and_texts():
    x = torch.rand(6, 3)
    values = MAMLModule(MLP((3,), (16,)), 1, inner=InnerLoop(steps=2, lr=0.1)).adapt(x, x.sum(1))
    found = values.explain(x[0])
    less = values.module.adapt(x[1:], x[1:].sum(1))
    assert float(found.influence[0]) == float(values.predict(x[:1]).double() - less.predict(x[:1]).double())
    assert str(found).startswith("value [")
    assert isinstance(found.figure(), Figure)
    texts = Tokens(torch.arange(1, 13).view(4, 3), torch.ones(4, 3, dtype=torch.int64))
    found = ProtoNetModule(TokenAverage(20)).adapt(texts, ["a", "b"] * 2).explain(Tokens(*(part[:1] for part in texts)))
    assert found.looked_after is None
    assert found.distances.argmin() == 0
    assert isinstance(found.figure(), Figure)


@pytest.mark.parametrize("mistake", ["queries", "support"])
def test_mistakes(mistake):
    x = torch.rand(4, 3)
    count = 1 if mistake == "support" else 4
    predictor = ProtoNetModule(MLP((3,), (16,))).adapt(x[:count], ["a"] * count)
    with pytest.raises(UserError) as error:
        predictor.explain(x[:2] if mistake == "queries" else x[0])
    messages.keep(str(error.value))
