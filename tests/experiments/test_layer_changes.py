"""What a training carried over: similarities, movements and probes against numbers computed another way."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeClassifierCV
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import messages
from metatransfer import (
    MLP,
    ANILModule,
    Conv4,
    Digits,
    DomainDataModule,
    FineTuneModule,
    FrozenFeaturesModule,
    Glyphs,
    LabelledDataModule,
    MAMLModule,
    ProtoNetModule,
    SourceOnlyModule,
    TypesetDigits,
    UserError,
)
from metatransfer.batches import episodes_of
from metatransfer.data.collections import Sinusoids
from metatransfer.experiments.layer_changes import CarriedOver, LayerChange, carried_over
from metatransfer.methods.layer_features import as_rows
from metatransfer.methods.options import InnerLoop
from serving_by_names import episodic

TASKS = {"num_ways": 5, "num_shots": 1, "num_queries": 3, "val_episodes": 8}


def shaken(module, seed=1, size=0.02):
    """A copy whose weights have moved, as by a training."""
    torch.manual_seed(seed)
    moved = copy.deepcopy(module)
    with torch.no_grad():
        for value in moved.parameters():
            value.add_(size * torch.randn_like(value))
    return moved.eval()


def unbiased_cka(x, y):
    """With the estimator of Song et al. (2012) on n x n kernels, written out."""

    def hsic(k, l):  # noqa: E741 - names of the paper
        n = len(k)
        k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))  # noqa: E741
        total = np.trace(k @ l) + k.sum() * l.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k @ l).sum()
        return total / (n * (n - 3))

    k, l = x @ x.T, y @ y.T  # noqa: E741
    return hsic(k, l) / np.sqrt(hsic(k, k) * hsic(l, l))


def test_a_classifier_against_numpy_and_scikit_learn():
    torch.manual_seed(0)
    data = LabelledDataModule(Digits(), labels_per_class=10)
    before = FineTuneModule(MLP((1, 28, 28), (16, 8)), 10).eval()
    after = shaken(before)
    found = carried_over(before, after, data, samples=120)
    assert [one.name for one in found.layers] == ["layers.1", "layers.3", "head"]
    chosen = torch.randperm(len(data.labels("val")), generator=torch.Generator().manual_seed(0))[:120]
    batches = list(data.samples("val"))
    numbers = torch.cat([batch.number for batch in batches])
    x, y = torch.cat([batch.x for batch in batches]), data.labels("val").numpy()
    kept = torch.isin(numbers, chosen)
    x, y = x[kept], y[numbers[kept]]
    features, right = {}, {}
    for key, module in (("start", before), ("end", after)):
        with torch.no_grad():
            features[key] = module.backbone.layers[:3](x).double().numpy()  # the first layer, with its ReLU
        probe = make_pipeline(StandardScaler(), RidgeClassifierCV(np.logspace(-2, 4, 7)))
        folds = KFold(5, shuffle=True, random_state=0)
        right[key] = (cross_val_predict(probe, features[key], y, cv=folds) == y).mean()
    first = found.layers[0]
    assert first.cka == pytest.approx(unbiased_cka(features["start"], features["end"]), abs=1e-5)
    assert (first.probe_start, first.probe_end) == pytest.approx((right["start"], right["end"]))
    assert first.gain == pytest.approx(right["end"] - right["start"])
    assert right["start"] > 0.5
    weights = [
        torch.cat([one.flatten() for one in module.backbone.layers[1].parameters()]) for module in (before, after)
    ]
    assert first.moved == pytest.approx(float((weights[1] - weights[0]).norm() / weights[0].norm()), rel=1e-5)
    assert first.svcca > first.svcca_by_chance
    assert "120 validation samples" in found.samples


def test_equal_networks_have_carried_over_everything():
    torch.manual_seed(0)
    module = ProtoNetModule(Conv4(hidden_channels=4)).eval()
    found = carried_over(module, copy.deepcopy(module), episodic(Glyphs(), **TASKS), samples=60)
    for one in found.layers:
        assert (one.cka, one.svcca) == pytest.approx((1, 1))
        assert one.moved == one.gain == 0
        assert one.moved_in_tasks is None
    assert "Kept (CKA of at least 0.9): layers.0, layers.4, layers.8, layers.12;" in found.conclusion


def test_the_probe_of_the_last_layer_is_a_prototypical_network():
    torch.manual_seed(0)
    data = episodic(Glyphs(), **TASKS)
    before = ProtoNetModule(Conv4(hidden_channels=4)).eval()
    after = shaken(before)
    last = carried_over(before, after, data, samples=160).layers[-1]
    scores = {id(module): [] for module in (before, after)}
    for batch in data.val_dataloader():
        for task in episodes_of(batch):
            for module in (before, after):
                with torch.no_grad():
                    scores[id(module)] += module.score(module(task), task.query_y).tolist()
    own = [sum(scores[id(module)]) / 8 for module in (before, after)]
    assert [last.probe_start, last.probe_end] == pytest.approx(own)
    assert own[0] != own[1]


@pytest.mark.parametrize("kind", [MAMLModule, ANILModule])
def test_movement_in_a_task_is_that_of_the_adapted_weights(kind):
    torch.manual_seed(0)
    data = episodic(Glyphs(), **TASKS)
    before = kind(Conv4(hidden_channels=4), 5, inner=InnerLoop(steps=2, lr=0.3)).eval()
    after = shaken(before)
    found = {one.name: one for one in carried_over(before, after, data, samples=1).layers}  # one task
    task = data.episode("val", 0)
    params = after.learned(task.support_x[0], task.support_y[0]).params
    own = dict(after.network.named_parameters())
    for name, prefix in (("layers.12", "backbone.layers.12"), ("head", "head")):
        keys = [key for key in own if key.startswith(prefix) and key in params]
        moved = sum(float((params[key][0] - own[key]).square().sum()) for key in keys) ** 0.5
        # of the layer with its normalisation, which adapts, too
        whole = [key for key in own if key.startswith((prefix, "backbone.layers.13") if name != "head" else prefix)]
        if name == "layers.12":
            moved = sum(float((params[key][0] - own[key]).square().sum()) for key in whole if key in params) ** 0.5
        size = sum(float(own[key].square().sum()) for key in whole) ** 0.5
        assert found[name].moved_in_tasks == pytest.approx(moved / size, rel=1e-4)
    assert (found["layers.12"].moved_in_tasks == 0) == (kind is ANILModule)
    assert (found["layers.12"].cka_in_tasks == pytest.approx(1, abs=1e-6)) == (kind is ANILModule)
    # the head's features after adaptation are the logits of the adapted network
    logits = after.adapt(task.support_x[0], task.support_y[0])._outputs(
        after.adapt(task.support_x[0], task.support_y[0]).task, task.query_x[0]
    )
    assert logits.shape == (15, 5)
    assert "Adaptation to a task moves" in carried_over(before, after, data, samples=1).conclusion


def test_regressions_have_no_probe():
    torch.manual_seed(0)
    data = episodic(Sinusoids(), num_shots=5, num_queries=5, val_episodes=4)
    before = MAMLModule(MLP((1,), (8, 8)), 1, inner=InnerLoop(steps=1, lr=0.01)).eval()
    found = carried_over(before, shaken(before), data, samples=30)
    assert found.probe == ""
    assert all(one.gain is None and one.probe_adapted is None for one in found.layers)
    assert all(one.moved_in_tasks > 0 for one in found.layers)
    assert "probe" not in found.conclusion


@pytest.mark.parametrize("oracle", ["report", "none"])
def test_a_probe_of_the_source_is_scored_on_the_target_if_its_labels_may_be_used(oracle):
    torch.manual_seed(0)
    data = DomainDataModule({"typeset": TypesetDigits()}, {"handwritten": Digits()}, oracle=oracle)
    before = SourceOnlyModule(MLP((1, 28, 28), (16,)), 10).eval()
    found = carried_over(before, shaken(before), data, samples=100)
    assert found.probe.endswith("scored on the target" if oracle == "report" else "5-fold cross-validated")
    sides = []
    for loader in data.val_dataloader():
        chosen = torch.randperm(loader.count, generator=torch.Generator().manual_seed(0))[:100]
        x, y, numbers = (torch.cat([getattr(batch, key) for batch in loader]) for key in ("x", "y", "number"))
        kept = torch.isin(numbers, chosen)
        with torch.no_grad():
            sides.append((before.backbone(x[kept]).double().numpy(), y[kept].numpy(), numbers[kept]))
    (x, y, _), (target, _, numbers) = sides
    probe = make_pipeline(StandardScaler(), RidgeClassifierCV(np.logspace(-2, 4, 7)))
    if oracle == "report":
        right = probe.fit(x, y).predict(target) == data.oracle_labels("val")[numbers].numpy()
    else:
        right = cross_val_predict(probe, x, y, cv=KFold(5, shuffle=True, random_state=0)) == y
    assert found.layers[0].probe_start == pytest.approx(right.mean())
    assert found.samples == "100 validation samples of the target"


def test_outputs_of_any_shape_become_rows():
    maps = torch.rand(3, 200, 6, 6)
    assert as_rows(maps).shape == (3, 200)
    torch.testing.assert_close(as_rows(maps), maps.mean((2, 3)))
    small = torch.rand(3, 8, 8, 8)
    torch.testing.assert_close(as_rows(small), small.unflatten(2, (4, 2)).unflatten(4, (4, 2)).mean((3, 5)).flatten(1))
    tokens = torch.rand(2, 4, 5)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    torch.testing.assert_close(as_rows(tokens, mask)[0], tokens[0, :2].mean(0))
    torch.testing.assert_close(as_rows(tokens)[1], tokens[1].mean(0))


def test_the_conclusion_names_what_was_kept_what_changed_and_where_the_probe_gained():
    def layer(name, cka, gain, p, **more):
        return LayerChange(name, cka, 0.5, 0.1, 0.3, 0.5, 0.5 + gain, gain, 0.02, p, **more)

    layers = (layer("one", 0.95, 0.0, 1.0), layer("two", 0.4, 0.2, 0.01, moved_in_tasks=0.25),
              layer("three", 0.6, -0.1, 0.01), layer("head", 0.0, 0.9, 0.0))  # fmt: skip
    assert CarriedOver(layers, "", "probe").conclusion == (
        "Kept (CKA of at least 0.9): one; changed most: two (CKA 0.40, weights moved by 30 %); the probe gained on two "
        "(+20.0 points); the probe lost on three (-10.0 points). Adaptation to a task moves two most (by 25 %)."
    )
    many = tuple(layer(f"layer {n}", 0.95, 0.0, 1.0) for n in range(9))
    assert (
        "layer 3 and 5 more; the probe gained or lost significantly on no layer."
        in CarriedOver(many, "", "").conclusion
    )
    assert CarriedOver((LayerChange("one", None, None, None, 0.0),), "", "").conclusion.endswith("no layer.")


@pytest.mark.parametrize("mistake", ["kind", "shape", "fitted", "few", "few domains", "split", "domains"])
def test_mistakes(mistake):
    torch.manual_seed(0)
    data, split, module = LabelledDataModule(Digits()), "val", FineTuneModule(MLP((1, 28, 28), (4,)), 10)
    if mistake == "kind":
        module = ProtoNetModule(Conv4(hidden_channels=4))
    elif mistake == "shape":
        module = FineTuneModule(MLP((3,), (4,)), 10)
    elif mistake == "fitted":
        module = FrozenFeaturesModule(MLP((1, 28, 28), (4,)), 10)
    elif mistake == "split":
        split = "train"
    elif mistake.endswith("domains"):
        data, split = DomainDataModule({"a": TypesetDigits()}, {"b": Digits()}), "val" if "few" in mistake else "test"
        module = SourceOnlyModule(MLP((1, 28, 28), (4,)), 10)
    with pytest.raises(UserError) as error:
        carried_over(module, copy.deepcopy(module), data, split=split, samples=3 if "few" in mistake else 100)
    messages.keep(str(error.value))
