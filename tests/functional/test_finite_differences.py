"""Outer gradients against differences of high order, at 1e-10: no second derivative of anybody's is trusted here.

Central differences of tenth order with a step of 2e-4: their own error is below 1e-20 times the eleventh derivative,
and rounding in float64 is about 1e-16 / 2e-4. What is differenced is an explicit loop that takes first derivatives
only; in the second half not even those are torch's: numpy in extended precision takes them by complex steps, and
agrees to 1e-11.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from engine_networks import NETWORKS, WAYS, Residual, build, tasks, trainable
from test_inner_loop import ENGINES, LR, gradients, ours, reference
from torch import nn

from metatransfer.functional import adapt_tasks, inner_loop, over_tasks, sgd, stateless

BOUND = 1e-10
TENTH_ORDER = (5 / 6, -5 / 21, 5 / 84, -5 / 504, 1 / 1260)
EIGHTH_ORDER = (4 / 5, -1 / 5, 4 / 105, -1 / 280)


def derivative(function, step, weights=TENTH_ORDER):
    """That of ``function`` at 0, by values on both sides."""
    return sum(w * (function(k * step) - function(-k * step)) for k, w in enumerate(weights, start=1)) / step


# ---- every smooth kind of layer

KINKED = {"batch_norm_relu_maxpool", "resnet12"}
GELU = {
    "gelu": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(36, 8), nn.GELU(), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, WAYS)
    ),
    "gelu_batch_norm_residual": lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        Residual(nn.Sequential(nn.BatchNorm2d(4), nn.GELU(), nn.Conv2d(4, 4, 3, padding=1), nn.GroupNorm(2, 4))),
        nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, WAYS),
    ),
    "softplus_strided": lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.Softplus(), nn.Flatten(), nn.Linear(36, WAYS)
    ),
}  # fmt: skip
SMOOTH = [*(name for name in NETWORKS if name not in KINKED), *GELU]
MODES = {
    "inner_loop": ENGINES["one"],
    "loop": ENGINES["tasks-loop"],
    "vmap": ENGINES["tasks-vmap"],
    "vmap-chunks": ENGINES["tasks-vmap-chunks"],
    "loop-checkpoint": ENGINES["tasks-loop-checkpoint"],
    "vmap-checkpoint": ENGINES["tasks-vmap-checkpoint"],
}


# one engine for each network, or for numpy; what engines agree in, test_inner_loop.py compares for all of them
def by_engine(*canary):
    return pytest.mark.parametrize(
        ("steps", "mode"),
        [
            pytest.param(steps, mode, marks=() if (steps, mode) == canary else pytest.mark.slow)
            for steps in (1, 3)
            for mode in MODES
        ],
    )


def network(name):
    if name not in GELU:
        return build(name)
    torch.manual_seed(sum(map(ord, name)))
    net = GELU[name]().double().train()
    for value in net.parameters():  # away from the round numbers of fresh normalisation layers
        nn.init.uniform_(value, -0.5, 0.5) if value.dim() > 1 else nn.init.uniform_(value, 0.2, 1.0)
    return net


@functools.cache
def measured(name, steps):
    """Directions, and the derivative of the outer loss along each."""
    net, data = network(name), tasks(name)
    params = trainable(net)
    gradient = gradients(reference(net, data, steps), params)
    norm = torch.cat([g.flatten() for g in gradient]).norm()
    directions = []
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        random = [torch.randn(g.shape, generator=generator, dtype=g.dtype) for g in gradient]
        size = torch.cat([r.flatten() for r in random]).norm()
        # partly along the gradient, so that the derivative is not small by chance
        directions.append([r / size + g / norm for r, g in zip(random, gradient, strict=True)])

    def along(direction, width):
        # leaves, which the explicit loop takes first derivatives by
        start = {
            key: (value + width * d).detach().requires_grad_()
            for (key, value), d in zip(params.items(), direction, strict=True)
        }
        return float(reference(net, data, steps, first_order=True, start=start).detach())

    return directions, [derivative(functools.partial(along, d), 2e-4) for d in directions]


@by_engine(3, "vmap")
@pytest.mark.parametrize("name", SMOOTH)
def test_the_gradient_is_the_difference_of_losses(name, steps, mode):
    net, data = network(name), tasks(name)
    found = gradients(ours(net, data, steps, **MODES[mode]), trainable(net))
    for direction, expected in zip(*measured(name, steps), strict=True):
        along = sum(float((g * d).sum()) for g, d in zip(found, direction, strict=True))
        assert along == pytest.approx(expected, rel=BOUND, abs=0)


@pytest.mark.parametrize("name", ["batch_norm", "group_norm"])
def test_the_bound_is_sharp(name):
    """First-order gradients, or ones that are off by a billionth, do not pass for it."""
    net, data = build(name), tasks(name)
    [direction, _], [expected, _] = measured(name, 3)
    for options, factor in (({"first_order": True}, 1), ({}, 1 + 1e-9)):
        found = gradients(ours(net, data, 3, engine="tasks", **options), trainable(net))
        along = factor * sum(float((g * d).sum()) for g, d in zip(found, direction, strict=True))
        assert along != pytest.approx(expected, rel=BOUND, abs=0)


# ---- without torch: numpy in extended precision, one network with every normalisation, written out

EXTENDED, COMPLEX = np.longdouble, np.clongdouble
needs_extended = pytest.mark.skipif(np.finfo(EXTENDED).eps > 2e-19, reason="no extended precision on this machine")
SAMPLES, QUERIES, TASKS = 5, 4, 2


def mixed():
    torch.manual_seed(5)
    net = nn.Sequential(
        nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Conv1d(3, 4, 1), nn.GroupNorm(2, 4), nn.GELU("tanh"),
        nn.Flatten(), nn.LayerNorm(12), nn.Linear(12, WAYS),
    ).double()  # fmt: skip
    for value in net.parameters():
        if value.dim() == 1:
            nn.init.uniform_(value, 0.5, 1.5)
    return net.train()


def mixed_tasks():
    generator = torch.Generator().manual_seed(6)
    x = torch.randn(TASKS, SAMPLES + QUERIES, 2, 5, generator=generator, dtype=torch.float64)
    y = torch.randint(0, WAYS, (TASKS, SAMPLES + QUERIES), generator=generator)
    return x[:, :SAMPLES], y[:, :SAMPLES], x[:, SAMPLES:], y[:, SAMPLES:]


def normalised(x, axes):
    centred = x - x.mean(axes, keepdims=True)
    return centred / np.sqrt((centred * centred).mean(axes, keepdims=True) + EXTENDED(1e-5))


def numpy_loss(p, x, y):
    """``(B,)`` losses of ``B`` versions ``{name: (B, *shape)}`` of the parameters of :func:`mixed`."""
    column = lambda values: values[:, None, :, None]  # noqa: E731
    windows = np.stack([x[:, :, place : place + 3] for place in range(3)], -1)
    h = np.tensordot(p["0.weight"], windows, ((2, 3), (1, 3))).transpose(0, 2, 1, 3) + column(p["0.bias"])
    h = np.tanh(normalised(h, (1, 3)) * column(p["1.weight"]) + column(p["1.bias"]))
    h = (p["3.weight"][:, None, :, :, 0, None] * h[:, :, None]).sum(3) + column(p["3.bias"])
    versions, rows = h.shape[:2]
    groups = normalised(h.reshape(versions, rows, 2, -1), (3,)).reshape(versions, rows, 4, -1)
    h = groups * column(p["4.weight"]) + column(p["4.bias"])
    h = h * (1 + np.tanh(np.sqrt(2 / EXTENDED(np.pi)) * (h + EXTENDED(0.044715) * h * h * h))) / 2
    h = normalised(h.reshape(versions, rows, -1), (2,)) * p["7.weight"][:, None] + p["7.bias"][:, None]
    logits = (p["8.weight"][:, None] * h[:, :, None]).sum(-1) + p["8.bias"][:, None]
    return (np.log(np.exp(logits).sum(-1)) - logits[:, np.arange(rows), y]).mean(1)


class NumpyMAML:
    """The outer loss as a function of one vector: all parameters, then a rate for each tensor."""

    def __init__(self, net, data, steps):
        self.shapes = {name: tuple(value.shape) for name, value in net.named_parameters()}
        self.sizes = {name: value.numel() for name, value in net.named_parameters()}
        self.count = sum(self.sizes.values())
        self.data = [part.numpy().astype(EXTENDED) if part.is_floating_point() else part.numpy() for part in data]
        self.steps = steps

    def loss(self, vectors, x, y):
        ends = np.cumsum(list(self.sizes.values()))[:-1]
        parts = np.split(vectors, ends, axis=1)
        named = zip(self.shapes.items(), parts, strict=True)
        return numpy_loss({name: part.reshape(len(part), *shape) for (name, shape), part in named}, x, y)

    def gradient(self, vector, x, y):
        # f(x + ih) = f(x) + ih f'(x) - h^2 ...: nothing is subtracted, so that h may be as small as it likes
        tiny = EXTENDED("1e-40")
        moved = vector.astype(COMPLEX) + COMPLEX(1j) * tiny * np.eye(self.count, dtype=EXTENDED)
        return self.loss(moved, x, y).imag / tiny

    def __call__(self, vector):
        start, rates = vector[: self.count], np.repeat(vector[self.count :], list(self.sizes.values()))
        losses = []
        for sx, sy, qx, qy in zip(*self.data, strict=True):
            current = start
            for _ in range(self.steps):
                current = current - rates * self.gradient(current, sx, sy)
            losses.append(self.loss(current[None], qx, qy)[0])
        return np.mean(losses)


@functools.cache
def by_numpy(steps):
    """The outer loss, and its derivatives: one direction within each tensor, then each rate."""
    net, data = mixed(), mixed_tasks()
    function = NumpyMAML(net, data, steps)
    rates = [LR / (1 + place) for place in range(len(function.sizes))]
    at = np.concatenate([value.detach().numpy().ravel() for value in net.parameters()] + [np.array(rates)])
    at, generator, first, directions = at.astype(EXTENDED), np.random.default_rng(0), 0, []
    for size in [*function.sizes.values(), *[1] * len(rates)]:
        direction = np.zeros(len(at))
        own = generator.normal(size=size) if size > 1 else np.ones(1)
        direction[first : first + size] = own / np.linalg.norm(own)
        directions.append(direction)
        first += size
    slopes = [derivative(lambda width, d=d: function(at + EXTENDED(width) * d), 1e-3, EIGHTH_ORDER) for d in directions]
    return float(function(at)), rates, directions, [float(slope) for slope in slopes]


def by_torch(steps, mode):
    net, data = mixed(), mixed_tasks()
    params, forward = trainable(net), stateless(net)
    _, rates, _, _ = by_numpy(steps)
    learned = {
        name: torch.tensor(rate, dtype=torch.float64, requires_grad=True)
        for name, rate in zip(params, rates, strict=True)
    }
    options = {"steps": steps, "update": sgd(learned)}
    spread = {key: value for key, value in MODES[mode].items() if key in {"batching", "chunk_size"}}

    def query(adapted, x, y):
        return F.cross_entropy(forward(adapted, x), y)

    if "inner_loop" in mode:
        one = lambda sx, sy, qx, qy: query(inner_loop(forward, params, sx, sy, **options), qx, qy)  # noqa: E731
        loss = over_tasks(one, *data).mean()
    else:
        [adapted], _ = adapt_tasks(
            forward, params, *data[:2], checkpoint="checkpoint" in mode, **options, **spread
        )  # fmt: skip
        loss = over_tasks(query, adapted, *data[2:], **spread).mean()
    found = gradients(loss, params | {f"rate of {name}": rate for name, rate in learned.items()})
    return float(loss.detach()), torch.cat([g.flatten() for g in found]).numpy()


@needs_extended
@by_engine(1, "loop")
def test_loss_and_gradients_of_every_tensor_and_rate_are_those_of_numpy(steps, mode):
    expected_loss, _, directions, slopes = by_numpy(steps)
    loss, gradient = by_torch(steps, mode)
    assert loss == pytest.approx(expected_loss, rel=1e-14)
    scale = max(map(abs, slopes))
    for direction, slope in zip(directions, slopes, strict=True):
        # each tensor by its own size; the bias before BatchNorm has a derivative of 0
        assert direction @ gradient == pytest.approx(slope, rel=1e-11, abs=1e-14 * scale)
