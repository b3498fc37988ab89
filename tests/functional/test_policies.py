"""Whole methods against an explicit loop at 1e-10: BatchNorm policies, recurrent layers, dropout, odd parameters.

The engine's own tests hold single networks; here is what :class:`MAMLModule` makes of them, tasks differentiated one
after the other and all.
"""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from engine_networks import RECURRENT, WAYS, Recurrent
from torch import nn
from torch.func import functional_call

from inner_options import grouped
from metatransfer import ANILModule, Backbone, Conv4, Episode, MAMLModule, UserError
from metatransfer.functional import choose_batching

TASKS, LR = 3, 0.3
EVERY_WAY = {
    "loop": {"batching": "loop"},
    "vmap": {"batching": "vmap"},
    "vmap-chunks": {"batching": "vmap", "chunk_size": 2},
    "loop-checkpoint": {"batching": "loop", "checkpoint": True},
    "vmap-checkpoint": {"batching": "vmap", "checkpoint": True},
}
LOOPS = {way: options for way, options in EVERY_WAY.items() if options["batching"] == "loop"}


def episode(shape, shots=2, queries=3, classes=None):
    generator = torch.Generator().manual_seed(2)
    if classes is None:
        draw = lambda n: torch.randn(TASKS, WAYS * n, *shape, generator=generator, dtype=torch.float64)  # noqa: E731
    else:
        draw = lambda n: torch.randint(0, classes, (TASKS, WAYS * n, *shape), generator=generator)  # noqa: E731
    labels = lambda n: torch.arange(WAYS).repeat_interleave(n).repeat(TASKS, 1)  # noqa: E731
    return Episode(draw(shots), labels(shots), draw(queries), labels(queries))


def made(backbone, kind=MAMLModule, **options):
    module = kind(backbone, num_outputs=WAYS, **grouped(kind, **({"inner_lr": LR} | options))).double()
    with torch.no_grad():
        for name, value in module.network.named_parameters():
            if value.dim() == 1 and "layers" in name:  # a fresh affine map is 1 and 0: give it something to be wrong in
                value.uniform_(0.5, 1.5)
        for name, value in module.named_buffers():
            if "running" in name:
                value.uniform_(0.2, 1.2)
    return module


def explicit(network, batch, steps, *, answer=None, adapts=lambda name: True):
    """Outer loss, by plain autograd: ``answer(params, support_x, query_x)`` gives the queries' outputs."""
    start = {name: value for name, value in network.named_parameters() if value.requires_grad}
    losses = []
    for support_x, support_y, query_x, query_y in zip(*batch[:4], strict=True):
        params = dict(start)
        for _ in range(steps):
            loss = F.cross_entropy(functional_call(network, params, (support_x,)), support_y)
            names = [name for name in params if adapts(name)]
            found = torch.autograd.grad(
                loss, [params[name] for name in names], create_graph=True, materialize_grads=True
            )
            params |= {name: params[name] - LR * gradient for name, gradient in zip(names, found, strict=True)}
        outputs = functional_call(network, params, (query_x,)) if answer is None else answer(params, support_x, query_x)
        losses.append(F.cross_entropy(outputs, query_y))
    return torch.stack(losses).mean()


def assert_same(module, loss, expected):
    """Each tensor by its own size, where it has more of a gradient than rounding."""
    trainable = [value for value in module.network.parameters() if value.requires_grad]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    found = torch.autograd.grad(loss, trainable, materialize_grads=True)
    wanted = torch.autograd.grad(expected, trainable, materialize_grads=True)
    total = torch.cat([gradient.flatten() for gradient in wanted]).norm()
    assert total > 1e-3
    for one, two in zip(found, wanted, strict=True):
        assert (one - two).norm() <= 1e-10 * max(two.norm(), 1e-4 * total)
    return wanted


# ---- BatchNorm


def conv4_by_support(params, support, query):
    """Conv4 and its head written out, queries normalised by the mean and variance of the support set in every layer."""
    for block in range(4):
        prefix = f"backbone.layers.{4 * block}"
        norm = f"backbone.layers.{4 * block + 1}"
        support, query = (
            F.conv2d(x, params[f"{prefix}.weight"], params[f"{prefix}.bias"], padding=1) for x in (support, query)
        )
        mean = support.mean((0, 2, 3), keepdim=True)
        deviation = ((support - mean).square().mean((0, 2, 3), keepdim=True) + 1e-5).sqrt()
        scale, shift = (params[f"{norm}.{part}"].view(1, -1, 1, 1) for part in ("weight", "bias"))
        support, query = (F.relu(F.max_pool2d((x - mean) / deviation * scale + shift, 2)) for x in (support, query))
    return F.linear(query.flatten(1), params["head.linear.weight"], params["head.linear.bias"])


@pytest.mark.grid(3)
@pytest.mark.parametrize("way", EVERY_WAY)
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("kind", [MAMLModule, ANILModule])
def test_support_statistics_normalise_the_queries_too(kind, steps, way):
    backbone = Conv4(hidden_channels=4)
    module = made(backbone, kind, inner_steps=steps, batch_norm="support", **EVERY_WAY[way]).train()
    batch = episode((1, 28, 28))
    adapts = (lambda name: name.startswith("head")) if kind is ANILModule else (lambda name: True)
    loss, _ = module.training_loss(batch)
    twin = copy.deepcopy(module.network).train()
    for (name, value), own in zip(twin.named_parameters(), module.network.parameters(), strict=True):
        parent, _, last = name.rpartition(".")
        assert torch.equal(value, own)
        twin.get_submodule(parent)._parameters[last] = own  # the twin's buffers move, the module's must not
    expected = explicit(twin, batch, steps, answer=conv4_by_support, adapts=adapts)
    assert_same(module, loss, expected)
    plain = explicit(twin, batch, steps, adapts=adapts)
    assert abs(plain.item() - expected.item()) > 1e-4  # or this test would prove nothing


@pytest.mark.grid(3)
@pytest.mark.parametrize("way", EVERY_WAY)
@pytest.mark.parametrize("steps", [1, 3])
def test_running_averages_normalise_in_evaluation(steps, way):
    module = made(Conv4(hidden_channels=4), inner_steps=steps, batch_norm="running", **EVERY_WAY[way]).eval()
    batch, before = episode((1, 28, 28)), copy.deepcopy(dict(module.named_buffers()))
    assert_same(module, module.training_loss(batch)[0], explicit(module.network.eval(), batch, steps))
    assert all(torch.equal(value, before[name]) for name, value in module.named_buffers())


@pytest.mark.grid(3)
@pytest.mark.parametrize("way", EVERY_WAY)
def test_running_averages_are_those_of_one_pass_over_all_support_sets(way):
    """Collected before the inner loop, once; training itself normalises by batch."""
    module = made(Conv4(hidden_channels=4), inner_steps=3, batch_norm="running", **EVERY_WAY[way]).train()
    batch, twin = episode((1, 28, 28)), copy.deepcopy(module.network).train()
    loss, _ = module.training_loss(batch)
    buffers = copy.deepcopy(dict(module.network.named_buffers()))
    with torch.no_grad():
        twin(batch.support_x.flatten(0, 1))
    for name, value in twin.named_buffers():
        torch.testing.assert_close(buffers[name], value, rtol=1e-12, atol=1e-12)
    assert_same(module, loss, explicit(module.network, batch, 3))


# ---- recurrent layers, dropout


class Sequence(Backbone):
    """Features of a sequence: the last output of a recurrent layer."""

    def __init__(self, name):
        super().__init__()
        self.rnn = Recurrent({"lstm": nn.LSTM, "gru": nn.GRU}[name])
        self.rnn.out = nn.Identity()
        self.out_features = 4

    def forward(self, x):
        return self.rnn(x)


@pytest.mark.grid(3)
@pytest.mark.parametrize("way", LOOPS)
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_backbones(name, steps, way):
    module, batch = made(Sequence(name), inner_steps=steps, **LOOPS[way]).train(), episode((1, 6, 6))
    assert_same(module, module.training_loss(batch)[0], explicit(module.network, batch, steps))
    assert choose_batching(module.network, batch.support_x) == "loop"


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_backbones_are_refused_under_vmap_in_a_sentence(name):
    with pytest.raises(UserError) as caught:
        made(Sequence(name), batching="vmap").training_loss(episode((1, 6, 6)))
    assert "set batching='loop' (--model.execution.batching loop)" in str(caught.value)


@pytest.mark.grid(3)
@pytest.mark.parametrize("way", [*LOOPS, "auto"])
def test_dropout_draws_what_the_explicit_loop_draws(way):
    backbone = Conv4(hidden_channels=4, dropout=0.3)
    module = made(backbone, inner_steps=3, **(LOOPS | {"auto": {}})[way]).train()
    batch, losses = episode((1, 28, 28)), []
    for seed in (4, 4, 5):
        torch.manual_seed(seed)
        losses.append(module.training_loss(batch)[0])
    torch.manual_seed(4)
    expected = explicit(module.network, batch, 3)
    assert_same(module, losses[1], expected)
    assert losses[0].item() == losses[1].item()
    assert abs(losses[2].item() - losses[1].item()) > 1e-4


# ---- odd parameters


class Tied(Backbone):
    """Encoder and decoder share a weight, once transposed; the head reads the code."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Linear(8, 5)
        self.again = nn.Linear(8, 5)
        self.again.weight = self.layers.weight
        self.out_features = 5

    def forward(self, x):
        code = torch.tanh(self.layers(x))
        return torch.tanh(self.again(code @ self.layers.weight))


class ByTask(Backbone):
    """A branch for each sign of a task's mean: no task reaches both, and a third branch is reached by none."""

    def __init__(self):
        super().__init__()
        self.positive, self.negative, self.idle = (nn.Linear(8, 5) for _ in range(3))
        self.out_features = 5

    def forward(self, x):
        return torch.tanh((self.positive if x.mean() > 0 else self.negative)(x))


class Tokens(Backbone):
    def __init__(self, padding=None):
        super().__init__()
        self.table = nn.Embedding(11, 6, padding_idx=padding)
        self.out_features = 6

    def forward(self, x):
        return torch.tanh(self.table(x).mean(1))


@pytest.mark.grid(3)
@pytest.mark.parametrize("way", EVERY_WAY)
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("frozen", ["every other", "backbone", "head", "batch_norm"])
def test_frozen_parameters_stay_and_the_rest_is_right(frozen, steps, way):
    module = made(Conv4(hidden_channels=4), inner_steps=steps, **EVERY_WAY[way]).train()
    for index, (name, value) in enumerate(module.network.named_parameters()):
        chosen = {
            "every other": index % 2 == 1,
            "batch_norm": "layers" in name and value.dim() == 1,
        }.get(frozen, name.startswith(frozen))
        value.requires_grad_(not chosen)
    batch = episode((1, 28, 28))
    loss, _ = module.training_loss(batch)
    assert_same(module, loss, explicit(module.network, batch, steps))
    module.training_loss(batch)[0].backward()
    for value in module.parameters():
        assert (value.grad is not None) == value.requires_grad


@pytest.mark.parametrize("way", EVERY_WAY)
@pytest.mark.parametrize("steps", [1, 3])
def test_tied_parameters(steps, way):
    module, batch = made(Tied(), inner_steps=steps, **EVERY_WAY[way]).train(), episode((8,))
    assert_same(module, module.training_loss(batch)[0], explicit(module.network, batch, steps))


@pytest.mark.parametrize("way", EVERY_WAY)
@pytest.mark.parametrize("steps", [1, 3])
def test_whole_number_inputs(steps, way):
    module, batch = made(Tokens(), inner_steps=steps, **EVERY_WAY[way]).train(), episode((5,), classes=11)
    assert_same(module, module.training_loss(batch)[0], explicit(module.network, batch, steps))


@pytest.mark.parametrize("way", EVERY_WAY)
@pytest.mark.parametrize("steps", [1, 3])
def test_the_row_of_padding_does_not_adapt(steps, way):
    """torch.func.vmap over F.embedding keeps padding_idx for the first task alone."""
    module, batch = made(Tokens(padding=0), inner_steps=steps, **EVERY_WAY[way]).train(), episode((5,), classes=11)
    assert_same(module, module.training_loss(batch)[0], explicit(module.network, batch, steps))


@pytest.mark.parametrize("way", LOOPS)
@pytest.mark.parametrize("steps", [1, 3])
def test_parameters_that_only_some_tasks_reach(steps, way):
    module, batch = made(ByTask(), inner_steps=steps, **LOOPS[way]).train(), episode((8,))
    for part in (batch.support_x, batch.query_x):
        for task, sign in enumerate((1, -1, 1)):
            part[task] += sign - part[task].mean()
    gradients = assert_same(module, module.training_loss(batch)[0], explicit(module.network, batch, steps))
    names = [name for name, _ in module.network.named_parameters()]
    sizes = {name: float(gradient.norm()) for name, gradient in zip(names, gradients, strict=True)}
    assert sizes["backbone.positive.weight"] > 1e-4
    assert sizes["backbone.negative.weight"] > 1e-4
    assert sizes["backbone.idle.weight"] == 0
    module.training_loss(batch)[0].backward()
    assert module.backbone.idle.weight.grad is None


class Sign(Backbone):
    """Looks at its input in Python, which cannot be mapped."""

    def __init__(self):
        super().__init__()
        self.layer, self.out_features = nn.Linear(8, 4), 4

    def forward(self, x):
        return self.layer(x) if x.mean() > 0 else self.layer(-x)


@pytest.mark.parametrize("steps", [0, 1])
def test_what_cannot_be_mapped_is_answered_in_a_sentence(steps):
    module, batch = made(Sign(), inner_steps=steps, batching="vmap").train(), episode((8,))
    with pytest.raises(UserError, match=r"cannot be mapped over tasks \(.*\): set batching='loop'"):
        module.training_loss(batch)


def test_a_query_that_is_not_a_number_stops_before_the_weights_are_spoiled():
    module, batch = made(Tied(), inner_steps=1).train(), episode((8,))
    batch.query_x[1, 0] = torch.nan
    with pytest.raises(UserError, match="the outer loss is NaN or infinite although all inner loops are finite"):
        module.training_loss(batch)


def test_running_statistics_of_a_single_sample_are_refused():
    module = made(Normed(), inner_steps=1, batch_norm="running").train()
    batch = episode((8,)).map(lambda tensor: tensor[:1, :1])
    with pytest.raises(UserError, match="needs more support samples per meta-batch than 1"):
        module.training_loss(batch)


class Normed(Backbone):
    def __init__(self):
        super().__init__()
        self.layer, self.norm, self.out_features = nn.Linear(8, 4), nn.BatchNorm1d(4), 4

    def forward(self, x):
        return self.norm(self.layer(x))


def test_samples_of_another_precision_are_taken_as_the_weights_are():
    module, batch = MAMLModule(Normed(), WAYS), episode((8,))
    assert batch.query_x.dtype == torch.float64
    assert module.train().training_loss(batch)[0].dtype == torch.float32
    assert module.eval()(batch).dtype == torch.float32


def test_an_embedding_that_renormalises_itself_is_refused():
    backbone = Tokens()
    next(layer for layer in backbone.modules() if isinstance(layer, nn.Embedding)).max_norm = 1.0
    with pytest.raises(UserError, match=r"max_norm=1\.0, which changes its weights"):
        made(backbone, inner_steps=1)
