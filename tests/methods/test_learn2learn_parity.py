"""Loss and outer gradients against learn2learn's own MAML, ANIL and Meta-SGD, in float64.

learn2learn clones a module for every task, adapts the clone in place and averages nothing by itself; its examples
divide by the number of tasks, as is done here. Same weights, same tasks, nothing shared but ``torch``.
"""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from test_maml import double, sinusoids
from torch import nn

from contract import WAYS
from contract import episode as small_images
from inner_options import grouped
from metatransfer import MLP, ANILModule, Backbone, Conv4, Episode, FOMAMLModule, MAMLModule, MetaSGDModule

l2l = pytest.importorskip("learn2learn")

TASKS = 3
BATCHINGS = {"loop": {"batching": "loop"}, "vmap": {"batching": "vmap"}}
EVERY_WAY = BATCHINGS | {
    "vmap-chunks": {"batching": "vmap", "chunk_size": 2},
    "loop-checkpoint": {"batching": "loop", "checkpoint": True},
    "vmap-checkpoint": {"batching": "vmap", "checkpoint": True},
}


class TheirFeatures(Backbone):
    """A backbone whose layers are learn2learn's."""

    def __init__(self, features, out_features):
        super().__init__()
        self.features = features
        self.out_features = out_features

    def forward(self, x):
        return self.features(x)


def colour_images(tasks=TASKS):
    generator = torch.Generator().manual_seed(3)
    draw = lambda count: torch.rand(tasks, WAYS * count, 3, 84, 84, generator=generator)  # noqa: E731
    labels = lambda count: torch.arange(WAYS).repeat_interleave(count).repeat(tasks, 1)  # noqa: E731
    return Episode(draw(1), labels(1), draw(2), labels(2))


def omniglot_cnn():
    """Strided convolutions, BatchNorm, mean over space."""
    return l2l.vision.models.OmniglotCNN(WAYS, hidden_size=4)


def cnn4():
    """Max-pooling, 84x84 colour images."""
    return l2l.vision.models.CNN4(WAYS, hidden_size=4)


def from_theirs(model):
    """Their model as ours, weights and all: their features, our linear head."""

    def make(kind, **options):
        whole = copy.deepcopy(model)
        backbone = TheirFeatures(whole.features, model.classifier.in_features)
        module = kind(backbone, num_outputs=WAYS, **grouped(kind, **options))
        module.head.linear.load_state_dict(model.classifier.state_dict())
        return module

    return make


def our_own(backbone, outputs):
    return lambda kind, **options: kind(backbone(), num_outputs=outputs, **grouped(kind, **options))


def case(name):
    """How to make our module, learn2learn's network with the same weights, in the same order, and the tasks."""
    images = double(small_images(tasks=TASKS))
    if name in {"OmniglotCNN", "CNN4"}:
        model = (omniglot_cnn if name == "OmniglotCNN" else cnn4)().double().train()
        return (
            from_theirs(model),
            lambda ours: copy.deepcopy(model),
            images if name == "OmniglotCNN" else double(colour_images()),
        )
    make, batch = {
        "Conv4": (our_own(lambda: Conv4(hidden_channels=4), WAYS), images),
        "Conv4-group": (our_own(lambda: Conv4(hidden_channels=4, norm="group"), WAYS), images),
        "MLP-norm": (our_own(lambda: MLP((1, 28, 28), (16, 8), norm=True), WAYS), images),
        "sinusoid": (our_own(lambda: MLP((1,), (40, 40)), 1), double(sinusoids(TASKS, 6, seed=0))),
    }[name]
    return make, lambda ours: copy.deepcopy(ours.network).train(), batch


CASES = ["Conv4", "Conv4-group", "MLP-norm", "sinusoid", "OmniglotCNN", "CNN4"]
GRID = [
    (name, steps, way)
    for name in CASES
    for steps in (1, 3)
    for way in EVERY_WAY
    # larger images: each way once
    if name != "CNN4" or (steps, way) in {(1, "loop"), (1, "vmap"), (3, "vmap")}
]
RATES = {"sinusoid": 0.05}


def task_loss(outputs, targets):
    return F.mse_loss(outputs, targets) if targets.is_floating_point() else F.cross_entropy(outputs, targets)


def their_loss(learner, batch, steps):
    """The loop of learn2learn's examples: clone, adapt, evaluate; the mean over tasks."""
    losses = []
    for support_x, support_y, query_x, query_y in zip(*batch[:4], strict=True):
        clone = learner.clone()
        for _ in range(steps):
            clone.adapt(task_loss(clone(support_x), support_y))
        losses.append(task_loss(clone(query_x), query_y))
    return torch.stack(losses).mean()


def assert_same(loss, ours, expected, theirs):
    """Loss, and every gradient tensor by itself, relative to its own size."""
    assert loss.item() == pytest.approx(expected.item(), rel=1e-10)
    found = torch.autograd.grad(loss, ours)
    wanted = torch.autograd.grad(expected, theirs)
    total = torch.cat([g.flatten() for g in wanted]).norm()
    assert total > 1e-3
    for one, two in zip(found, wanted, strict=True):
        # a bias that BatchNorm takes away again has no gradient but rounding: there the size of all of it is the scale
        assert (one - two).norm() <= 1e-10 * max(two.norm(), 1e-4 * total)


def shapes(parameters):
    return [tuple(value.shape) for value in parameters]


@pytest.mark.grid(3)
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize(("name", "steps", "way"), GRID)
def test_maml(name, steps, first_order, way):
    make, twin, batch = case(name)
    lr = RATES.get(name, 0.4)
    ours = make(MAMLModule, inner_steps=steps, inner_lr=lr, first_order=first_order, **EVERY_WAY[way]).double().train()
    theirs = l2l.algorithms.MAML(twin(ours), lr=lr, first_order=first_order)
    parameters = list(ours.network.parameters())
    assert shapes(parameters) == shapes(theirs.parameters())
    loss, _ = ours.training_loss(batch)
    assert_same(loss, parameters, their_loss(theirs, batch, steps), list(theirs.parameters()))


@pytest.mark.parametrize("way", BATCHINGS)
@pytest.mark.parametrize("name", ["Conv4", "sinusoid"])
def test_fomaml_is_their_first_order(name, way):
    make, twin, batch = case(name)
    lr = RATES.get(name, 0.4)
    ours = make(FOMAMLModule, inner_steps=3, inner_lr=lr, **EVERY_WAY[way]).double().train()
    theirs = l2l.algorithms.MAML(twin(ours), lr=lr, first_order=True)
    loss, _ = ours.training_loss(batch)
    assert_same(loss, list(ours.network.parameters()), their_loss(theirs, batch, 3), list(theirs.parameters()))
    second = l2l.algorithms.MAML(twin(ours), lr=lr)
    with pytest.raises(AssertionError):  # or this test would prove nothing
        assert_same(
            ours.training_loss(batch)[0], list(ours.network.parameters()),
            their_loss(second, batch, 3), list(second.parameters()),
        )  # fmt: skip


@pytest.mark.grid(3)
@pytest.mark.parametrize("way", BATCHINGS)
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_anil_is_their_maml_of_the_head(name, steps, way):
    """Their features, computed for support and queries each by themselves, under ``MAML(head)``."""
    make, twin, batch = case(name)
    lr = RATES.get(name, 0.4)
    ours = make(ANILModule, inner_steps=steps, inner_lr=lr, **BATCHINGS[way]).double().train()
    network = twin(ours)
    if isinstance(network, nn.Sequential):
        features, classifier = network.backbone, network.head
    else:
        features, classifier = network.features, network.classifier
    head = l2l.algorithms.MAML(classifier, lr=lr)
    losses = []
    for support_x, support_y, query_x, query_y in zip(*batch[:4], strict=True):
        clone, support, queries = head.clone(), features(support_x), features(query_x)
        for _ in range(steps):
            clone.adapt(task_loss(clone(support), support_y))
        losses.append(task_loss(clone(queries), query_y))
    expected = torch.stack(losses).mean()
    loss, _ = ours.training_loss(batch)
    assert_same(loss, list(ours.network.parameters()), expected, [*features.parameters(), *head.parameters()])


@pytest.mark.parametrize("way", BATCHINGS)
def test_anil_is_their_lightning_module(way):
    """It runs support and queries through the features together, which no BatchNorm may see: GroupNorm."""
    pytest.importorskip("pytorch_lightning")
    shots, queries = 2, 4
    make, twin, batch = case("Conv4-group")
    ours = make(ANILModule, inner_steps=3, inner_lr=0.4, **BATCHINGS[way]).double().train()
    network = twin(ours)
    theirs = l2l.algorithms.LightningANIL(
        network.backbone, network.head, adaptation_lr=0.4, adaptation_steps=3,
        train_ways=WAYS, train_shots=shots, train_queries=queries, test_ways=WAYS,
    )  # fmt: skip
    losses = []
    for support_x, support_y, query_x, query_y in zip(*batch[:4], strict=True):
        # sorted by class, the shots of a class before its queries
        x = torch.cat([support_x.unflatten(0, (WAYS, shots)), query_x.unflatten(0, (WAYS, queries))], dim=1)
        y = torch.cat([support_y.unflatten(0, (WAYS, shots)), query_y.unflatten(0, (WAYS, queries))], dim=1)
        losses.append(theirs.meta_learn((x.flatten(0, 1), y.flatten()), 0, WAYS, shots, queries)[0])
    parameters = [*theirs.features.parameters(), *theirs.classifier.parameters()]
    loss, _ = ours.training_loss(batch)
    assert_same(loss, list(ours.network.parameters()), torch.stack(losses).mean(), parameters)


@pytest.mark.grid(3)
@pytest.mark.parametrize("first_order", [False, True])
# OmniglotCNN holds its layers twice, as base and in features, and their Meta-SGD then adapts those that it does not use
@pytest.mark.parametrize(("name", "steps", "way"), [one for one in GRID if one[0] != "OmniglotCNN"])
def test_meta_sgd(name, steps, first_order, way):
    """Gradients of weights and of rates, at rates that differ from weight to weight, some below 0."""
    make, twin, batch = case(name)
    ours = make(MetaSGDModule, inner_steps=steps, first_order=first_order, **EVERY_WAY[way]).double().train()
    with torch.no_grad():
        for value in ours.rates.parameters():
            value.uniform_(-0.05, 0.2 if name != "sinusoid" else 0.08)
    theirs = l2l.algorithms.MetaSGD(twin(ours), first_order=first_order)
    rates = ours.rates()
    with torch.no_grad():
        for value, (key, _) in zip(theirs.lrs, ours.network.named_parameters(), strict=True):
            value.copy_(rates[key])
    weights = list(ours.network.named_parameters())
    loss, _ = ours.training_loss(batch)
    assert_same(
        loss,
        [*(value for _, value in weights), *(rates[key] for key, _ in weights)],
        their_loss(theirs, batch, steps),
        [*theirs.module.parameters(), *theirs.lrs],
    )


def test_their_shared_layers_adapt_in_ours():
    """Why OmniglotCNN is missing above: with one rate for all, ours is their MAML, and their Meta-SGD is not."""
    model = omniglot_cnn().double().train()
    batch = double(small_images(tasks=TASKS))
    ours = from_theirs(model)(MetaSGDModule, inner_steps=1, batching="loop").double().train()
    with torch.no_grad():
        for value in ours.rates.parameters():
            value.fill_(0.4)
    maml = l2l.algorithms.MAML(copy.deepcopy(model), lr=0.4)
    loss, _ = ours.training_loss(batch)
    expected = their_loss(maml, batch, 1)
    assert_same(loss, list(ours.network.parameters()), expected, list(maml.parameters()))
    sgd = l2l.algorithms.MetaSGD(copy.deepcopy(model), lr=0.4)
    assert their_loss(sgd, batch, 1).item() != pytest.approx(expected.item(), rel=1e-3)
