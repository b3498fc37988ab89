"""The engine against an independent loop, finite differences and hand-made references, in float64."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from metatransfer.functional import inner_loop, over_tasks, sgd, stateless
from metatransfer.functional.losses import episode_loss

TASKS, SHOTS, QUERIES, WAYS, LR = 3, 6, 5, 3, 0.3
BATCHINGS = {
    "loop": {"batching": "loop", "composite": False},
    "loop-composite": {"batching": "loop", "composite": True},
    "vmap": {"batching": "vmap", "composite": True},
    "vmap-chunks": {"batching": "vmap", "composite": True, "chunk_size": 2},
}


class Residual(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x + self.inner(x)


class Tied(nn.Module):
    """One weight serves two layers, as in an autoencoder or a language model."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.out = nn.Linear(8, WAYS)

    def forward(self, x):
        return self.out(torch.tanh(self.second(torch.tanh(self.first(x.flatten(1))))))


class Embedded(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.norm = nn.LayerNorm(6)
        self.out = nn.Linear(6, WAYS)

    def forward(self, x):
        return self.out(torch.tanh(self.norm(self.table(x).mean(1))))


def conv(norm, *, smooth=True, dropout=None):
    act, pool = (nn.Tanh(), nn.AvgPool2d(2)) if smooth else (nn.ReLU(), nn.MaxPool2d(2))
    layers = [nn.Conv2d(1, 4, 3, padding=1), norm(), act, *([dropout] if dropout else []), pool]
    layers += [nn.Conv2d(4, 4, 3, padding=1), norm(), act, nn.Flatten(), nn.Linear(36, WAYS)]
    return nn.Sequential(*layers)


def frozen():
    net = conv(lambda: nn.BatchNorm2d(4))
    net[0].weight.requires_grad_(False)
    net[1].bias.requires_grad_(False)
    return net


NETWORKS = {
    "batch_norm": lambda: conv(lambda: nn.BatchNorm2d(4)),
    "batch_norm_relu_maxpool": lambda: conv(lambda: nn.BatchNorm2d(4), smooth=False),
    "batch_norm_untracked": lambda: conv(lambda: nn.BatchNorm2d(4, track_running_stats=False)),
    "batch_norm_not_affine": lambda: conv(lambda: nn.BatchNorm2d(4, affine=False)),
    "batch_norm_1d": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(36, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, WAYS)
    ),
    "instance_norm": lambda: conv(lambda: nn.InstanceNorm2d(4, affine=True)),
    "group_norm": lambda: conv(lambda: nn.GroupNorm(2, 4)),
    "layer_norm": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(36, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, WAYS)
    ),
    "dropout_zero": lambda: conv(lambda: nn.BatchNorm2d(4), dropout=nn.Dropout(0.0)),
    "residual": lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        Residual(nn.Sequential(nn.BatchNorm2d(4), nn.Tanh(), nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))),
        nn.Tanh(), nn.Flatten(), nn.Linear(144, WAYS),
    ),
    "tied": Tied,
    "frozen": frozen,
    "embedding": Embedded,
}  # fmt: skip


def build(name):
    torch.manual_seed(sum(map(ord, name)))
    net = NETWORKS[name]().double().train()
    for layer in net.modules():  # a fresh affine map is 1 and 0: give it something to be wrong about
        if getattr(layer, "weight", None) is not None and "Norm" in type(layer).__name__:
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -0.5, 0.5)
    return net


def tasks(name, dtype=torch.float64):
    generator = torch.Generator().manual_seed(7)
    if name == "embedding":
        draw = lambda n: torch.randint(0, 11, (TASKS, n, 5), generator=generator)  # noqa: E731
    elif name == "tied":
        draw = lambda n: torch.randn(TASKS, n, 8, generator=generator, dtype=dtype)  # noqa: E731
    else:
        draw = lambda n: torch.randn(TASKS, n, 1, 6, 6, generator=generator, dtype=dtype)  # noqa: E731
    label = lambda n: torch.randint(0, WAYS, (TASKS, n), generator=generator)  # noqa: E731
    return draw(SHOTS), label(SHOTS), draw(QUERIES), label(QUERIES)


def trainable(net):
    return {name: value for name, value in net.named_parameters() if value.requires_grad}


def ours(net, data, steps, *, batching="loop", composite=False, chunk_size=None, first_order=False, start=None):
    start = trainable(net) if start is None else start
    forward = stateless(net, composite=composite)

    def task(sx, sy, qx, qy):
        adapted = inner_loop(forward, start, sx, sy, steps=steps, update=sgd(LR), first_order=first_order)
        return F.cross_entropy(forward(adapted, qx), qy)

    return over_tasks(task, *data, batching=batching, chunk_size=chunk_size).mean()


def reference(net, data, steps, *, first_order=False, start=None):
    """The textbook: plain network in train mode, plain autograd, one task after the other."""
    start = trainable(net) if start is None else start
    net = copy.deepcopy(net)
    losses = []
    for sx, sy, qx, qy in zip(*data, strict=True):
        params = dict(start)
        for _ in range(steps):
            loss = F.cross_entropy(functional_call(net, params, (sx,)), sy)
            gradients = torch.autograd.grad(loss, list(params.values()), create_graph=not first_order)
            params = {name: params[name] - LR * g for name, g in zip(params, gradients, strict=True)}
        losses.append(F.cross_entropy(functional_call(net, params, (qx,)), qy))
    return torch.stack(losses).mean()


def gradients(loss, params):
    return [g.clone() for g in torch.autograd.grad(loss, list(params.values()))]


def relative_error(found, expected):
    scale = torch.cat([g.flatten() for g in expected]).norm()
    return max(float((a - b).norm() / scale) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("batching", BATCHINGS)
@pytest.mark.parametrize("steps", [1, 3, 5])
@pytest.mark.parametrize("name", NETWORKS)
def test_second_order_gradient_equals_plain_autograd(name, steps, batching):
    net, data = build(name), tasks(name)
    expected_loss = reference(net, data, steps)
    loss = ours(net, data, steps, **BATCHINGS[batching])
    assert abs(float((loss - expected_loss).detach())) < 1e-12
    params = trainable(net)
    assert relative_error(gradients(loss, params), gradients(expected_loss, params)) < 1e-10


@pytest.mark.parametrize("batching", ["loop", "vmap"])
@pytest.mark.parametrize("steps", [1, 3, 5])
@pytest.mark.parametrize("name", [name for name in NETWORKS if "relu" not in name])
def test_second_order_gradient_equals_finite_differences(name, steps, batching):
    net, data = build(name), tasks(name)
    params = trainable(net)
    gradient = gradients(ours(net, data, steps, **BATCHINGS[batching]), params)
    norm = torch.cat([g.flatten() for g in gradient]).norm()
    generator = torch.Generator().manual_seed(steps)
    random = [torch.randn(g.shape, generator=generator, dtype=g.dtype) for g in gradient]
    size = torch.cat([r.flatten() for r in random]).norm()
    # partly along the gradient, so that the derivative is not small by chance
    direction = [r / size + g / norm for r, g in zip(random, gradient, strict=True)]

    def at(step):
        moved = {key: (value + step * d).detach() for (key, value), d in zip(params.items(), direction, strict=True)}
        return float(ours(net, data, steps, start=moved, **BATCHINGS[batching]).detach())

    step = 1e-4  # fourth-order formula: truncation far below 1e-10, rounding about 1e-12
    measured = (8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step)
    expected = sum(float((g * d).sum()) for g, d in zip(gradient, direction, strict=True))
    assert measured == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ["batch_norm", "instance_norm"])
def test_native_normalisation_under_vmap_is_wrong_and_composite_is_needed(name):
    """The reason for ``composite``: torch's own batch_norm, under vmap(grad), loses a second-order term silently."""
    net, data = build(name), tasks(name)
    params = trainable(net)
    expected = gradients(reference(net, data, 3), params)
    error = relative_error(gradients(ours(net, data, 3, batching="vmap", composite=False), params), expected)
    if error < 1e-5:
        pytest.skip(f"torch {torch.__version__} differentiates native {name} under vmap rightly: composite may go")
    assert error > 1e-5
    assert relative_error(gradients(ours(net, data, 3, batching="vmap", composite=True), params), expected) < 1e-10


@pytest.mark.parametrize("batching", BATCHINGS)
@pytest.mark.parametrize("name", ["batch_norm", "instance_norm", "layer_norm", "tied", "frozen", "embedding"])
def test_first_order_is_fomaml(name, batching):
    net, data = build(name), tasks(name)
    params = trainable(net)
    found = gradients(ours(net, data, 3, first_order=True, **BATCHINGS[batching]), params)
    assert relative_error(found, gradients(reference(net, data, 3, first_order=True), params)) < 1e-10
    second = gradients(ours(net, data, 3, **BATCHINGS[batching]), params)
    assert relative_error(found, second) > 1e-3  # or this test would prove nothing


def test_first_order_detaches_gradients_not_parameters():
    net, data = build("layer_norm"), tasks("layer_norm")
    sx, sy = data[0][0], data[1][0]
    adapted = inner_loop(stateless(net), trainable(net), sx, sy, steps=4, update=sgd(LR), first_order=True)
    for name, value in trainable(net).items():  # d theta_K / d theta_0 is the identity
        [gradient] = torch.autograd.grad(adapted[name].sum(), [value], retain_graph=True)
        assert torch.equal(gradient, torch.ones_like(value))


@pytest.mark.parametrize("batching", BATCHINGS)
def test_first_order_holds_for_what_does_not_adapt(batching):
    """Head-only adaptation (ANIL): inner gradients are constants also for the backbone that they run through."""
    net, data = build("layer_norm"), tasks("layer_norm")
    head = {name: value for name, value in net.named_parameters() if name.startswith("4.")}
    body = {name: value for name, value in net.named_parameters() if not name.startswith("4.")}
    found = ours(net, data, 3, first_order=True, start=head, **BATCHINGS[batching])
    with torch.enable_grad():
        losses = []
        for sx, sy, qx, qy in zip(*data, strict=True):
            params = dict(head)
            for _ in range(3):
                loss = F.cross_entropy(functional_call(net, params, (sx,)), sy)
                inner = torch.autograd.grad(loss, list(params.values()))
                params = {name: params[name] - LR * g for name, g in zip(params, inner, strict=True)}
            losses.append(F.cross_entropy(functional_call(net, params, (qx,)), qy))
    expected = torch.stack(losses).mean()
    assert relative_error(gradients(found, body), gradients(expected, body)) < 1e-10


@pytest.mark.parametrize("batching", BATCHINGS)
def test_partial_adaptation_is_differentiable_in_the_rest(batching):
    net, data = build("batch_norm"), tasks("batch_norm")
    head = {name: value for name, value in net.named_parameters() if name.startswith("8.")}
    everything = trainable(net)
    assert 0 < len(head) < len(everything)
    found = gradients(ours(net, data, 3, start=head, **BATCHINGS[batching]), everything)
    with_head = copy.deepcopy(net)
    # the copy inside reference() would cut the graph to the body: run it on explicit parameters
    losses = []
    for sx, sy, qx, qy in zip(*data, strict=True):
        params = dict(everything)
        for _ in range(3):
            loss = F.cross_entropy(functional_call(with_head, params, (sx,)), sy)
            inner = torch.autograd.grad(loss, [params[name] for name in head], create_graph=True)
            params |= {name: params[name] - LR * g for name, g in zip(head, inner, strict=True)}
        losses.append(F.cross_entropy(functional_call(with_head, params, (qx,)), qy))
    assert relative_error(found, gradients(torch.stack(losses).mean(), everything)) < 1e-10


def test_dropout_masks_under_a_seed_equal_the_plain_loop():
    torch.manual_seed(3)
    net = conv(lambda: nn.BatchNorm2d(4), dropout=nn.Dropout(0.4)).double().train()
    data, params = tasks("batch_norm"), trainable(net)
    torch.manual_seed(11)
    expected = reference(net, data, 3)
    torch.manual_seed(11)
    found = ours(net, data, 3, batching="loop")
    torch.manual_seed(12)
    other = ours(net, data, 3, batching="loop")
    assert float(found.detach()) == pytest.approx(float(expected.detach()), abs=1e-12)
    assert float(other.detach()) != pytest.approx(float(expected.detach()), abs=1e-6)
    assert relative_error(gradients(found, params), gradients(expected, params)) < 1e-10


@pytest.mark.parametrize("batching", ["loop", "vmap"])
@pytest.mark.parametrize("chunk_size", [None, 1, 2])
def test_every_task_and_step_draws_its_own_dropout_mask(batching, chunk_size):
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Dropout(0.5)).double().train()
    nn.init.eye_(net[0].weight)
    x = torch.ones(6, 50, 4, dtype=torch.float64)
    seen = []

    def task(x):
        def loss(outputs, targets):
            return outputs.sum()

        # the gradient of the sum shows the mask of each step
        def keep(params, found, step):
            seen.append(step)
            return {name: value - found[name] for name, value in params.items()}

        start = dict(net.named_parameters())
        one = inner_loop(stateless(net, composite=True), start, x, x, steps=1, update=keep, loss=loss)
        two = inner_loop(stateless(net, composite=True), start, x, x, steps=1, update=keep, loss=loss)
        return one["0.weight"] - two["0.weight"], one["0.weight"]

    between, first = over_tasks(task, x, batching=batching, chunk_size=chunk_size)
    assert (between.flatten(1).abs().sum(1) > 0).all()
    assert len({tuple(row.flatten().tolist()) for row in first}) == 6
    assert set(seen) == {0}


@pytest.mark.parametrize("batching", BATCHINGS)
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", NETWORKS)
def test_state_dict_and_modes_stay_as_they_are(name, mode, batching):
    net, data = build(name).train(mode == "train"), tasks(name)
    before = copy.deepcopy(net.state_dict())
    modes = [layer.training for layer in net.modules()]
    gradients(ours(net, data, 2, **BATCHINGS[batching]), trainable(net))
    after = net.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert modes == [layer.training for layer in net.modules()]
    assert not any("forward" in layer.__dict__ for layer in net.modules())
    assert all(value.grad is None for value in net.parameters())


def test_an_error_inside_the_network_leaves_it_as_it_was():
    net = build("batch_norm")
    with pytest.raises(RuntimeError):
        stateless(net, composite=True)(trainable(net), torch.zeros(2, 3, 6, 6, dtype=torch.float64))
    assert not any("forward" in layer.__dict__ for layer in net.modules())
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), trainable(net).values(), strict=True))


@pytest.mark.parametrize("batching", BATCHINGS)
def test_no_steps_is_identity(batching):
    net, data = build("batch_norm"), tasks("batch_norm")
    start = trainable(net)
    options = BATCHINGS[batching]

    def task(sx, sy):
        return inner_loop(stateless(net, composite=options["composite"]), start, sx, sy, steps=0, update=sgd(LR))

    adapted = over_tasks(task, *data[:2], batching=options["batching"], chunk_size=options.get("chunk_size"))
    assert list(adapted) == list(start)
    assert all(torch.equal(adapted[name], value.expand(TASKS, *value.shape)) for name, value in start.items())


@pytest.mark.parametrize("batching", BATCHINGS)
@pytest.mark.parametrize("context", [torch.inference_mode, torch.no_grad])
def test_adapts_where_autograd_is_off(context, batching):
    net, data = build("batch_norm").eval(), tasks("batch_norm")
    expected = float(ours(net, data, 3, **BATCHINGS[batching]).detach())
    with context():
        copies = tuple(tensor.clone() for tensor in data)  # made inside, as a loader would
        loss = ours(net, copies, 3, **BATCHINGS[batching])
        assert not loss.requires_grad
        assert float(loss) == pytest.approx(expected, abs=1e-13)


@pytest.mark.parametrize("batching", BATCHINGS)
def test_inner_gradients_ignore_autocast(batching):
    options = BATCHINGS[batching]
    torch.manual_seed(0)
    net = conv(lambda: nn.BatchNorm2d(4)).train()
    sx, sy, _, _ = tasks("batch_norm", torch.float32)
    dtypes = set()

    def watched(params, found, step):
        dtypes.update(value.dtype for value in found.values())
        return sgd(LR)(params, found, step)

    def adapt(x, y):
        forward = stateless(net, composite=options["composite"])
        return inner_loop(forward, trainable(net), x, y, steps=2, update=watched)

    def run(x):
        return over_tasks(adapt, x, sy, batching=options["batching"], chunk_size=options.get("chunk_size"))

    plain = run(sx)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert net[0](sx[0]).dtype == torch.bfloat16  # autocast is on
        under = run(sx)
        from_half = run(sx.bfloat16())
    assert dtypes == {torch.float32}
    assert all(torch.equal(plain[name], under[name]) for name in plain)
    assert all(value.dtype == torch.float32 for value in from_half.values())


def test_sgd_takes_a_rate_for_each_parameter():
    params = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0])}
    found = {"a": torch.tensor([10.0, 10.0]), "b": torch.tensor([1.0])}
    moved = sgd({"a": torch.tensor([0.1, 0.0]), "b": torch.tensor(2.0)})(params, found, 0)
    torch.testing.assert_close(moved, {"a": torch.tensor([0.0, 2.0]), "b": torch.tensor([1.0])})
    torch.testing.assert_close(sgd(0.5)(params, found, 7), {"a": torch.tensor([-4.0, -3.0]), "b": torch.tensor([2.5])})
    assert torch.equal(params["a"], torch.tensor([1.0, 2.0]))


@pytest.mark.parametrize("batching", ["loop", "vmap"])
def test_learned_rates_get_their_gradient(batching):
    net, data = build("layer_norm"), tasks("layer_norm")
    start = trainable(net)
    rates = {name: torch.full_like(value, 0.2, requires_grad=True) for name, value in start.items()}

    def outer(rates):
        def task(sx, sy, qx, qy):
            forward = stateless(net, composite=True)
            adapted = inner_loop(forward, start, sx, sy, steps=2, update=sgd(rates))
            return F.cross_entropy(forward(adapted, qx), qy)

        return over_tasks(task, *data, batching=batching).mean()

    found = torch.autograd.grad(outer(rates), list(rates.values()))
    for (name, rate), gradient in zip(rates.items(), found, strict=True):
        bump = torch.zeros_like(rate)
        bump.view(-1)[0] = 1e-5
        up = float(outer({**rates, name: rate + bump}).detach())
        down = float(outer({**rates, name: rate - bump}).detach())
        assert (up - down) / 2e-5 == pytest.approx(float(gradient.view(-1)[0]), rel=1e-5, abs=1e-9)


def test_step_numbers_count_from_zero_and_names_are_kept():
    net, data = build("layer_norm"), tasks("layer_norm")
    steps = []

    def update(params, found, step):
        steps.append(step)
        assert list(params) == list(found)
        return params

    adapted = inner_loop(stateless(net), trainable(net), data[0][0], data[1][0], steps=3, update=update)
    assert steps == [0, 1, 2]
    assert list(adapted) == list(trainable(net))


@pytest.mark.parametrize("batching", ["loop", "vmap"])
def test_regression_targets_use_squared_error(batching):
    torch.manual_seed(0)
    net = nn.Linear(3, 2).double()
    x, y = torch.randn(2, 4, 3, dtype=torch.float64), torch.randn(2, 4, 2, dtype=torch.float64)

    def task(x, y):
        return inner_loop(stateless(net), dict(net.named_parameters()), x, y, steps=1, update=sgd(0.1))

    adapted = over_tasks(task, x, y, batching=batching)
    for index in range(2):
        residual = net(x[index]) - y[index]
        expected = net.weight - 0.1 * 2 / 8 * residual.T @ x[index]
        torch.testing.assert_close(adapted["weight"][index], expected)


def test_task_order_and_composition_do_not_matter():
    net, data = build("batch_norm"), tasks("batch_norm")

    def adapt(x, y):
        return inner_loop(stateless(net, composite=True), trainable(net), x, y, steps=3, update=sgd(LR))

    for batching in ("loop", "vmap"):
        together = over_tasks(adapt, *data[:2], batching=batching)
        for index in range(TASKS):
            alone = over_tasks(adapt, data[0][index : index + 1], data[1][index : index + 1], batching=batching)
            for name, value in together.items():
                torch.testing.assert_close(alone[name][0], value[index], rtol=1e-12, atol=1e-13)


def test_over_tasks_takes_and_returns_nested_containers():
    batch = {"a": torch.arange(6.0).view(3, 2)}, (torch.ones(3), [torch.zeros(3, 4)])

    def function(first, second):
        return {"sum": first["a"].sum() + second[0], "rest": (second[1][0],)}

    looped, mapped = (over_tasks(function, *batch, batching=batching) for batching in ("loop", "vmap"))
    assert looped["sum"].tolist() == mapped["sum"].tolist() == [2.0, 6.0, 10.0]
    assert looped["rest"][0].shape == mapped["rest"][0].shape == (3, 4)


@pytest.mark.parametrize("batching", ["loop", "vmap"])
def test_over_tasks_refuses_different_numbers_of_tasks(batching):
    with pytest.raises(ValueError, match=r"\w"):
        over_tasks(lambda a, b: a + b, torch.zeros(2), torch.zeros(3), batching=batching)


def test_custom_loss_is_the_one_that_is_minimised():
    weight = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    adapted = inner_loop(
        lambda params, x: params["w"] * x,
        {"w": weight},
        torch.tensor([[1.0]], dtype=torch.float64),
        torch.tensor([0]),
        steps=1,
        update=sgd(0.5),
        loss=lambda outputs, targets: outputs.pow(3).sum(),
    )
    assert float(adapted["w"].detach()) == pytest.approx(2 - 0.5 * 3 * 4)
    [gradient] = torch.autograd.grad(adapted["w"].sum(), [weight])
    assert float(gradient) == pytest.approx(1 - 0.5 * 6 * 2)
    assert episode_loss(torch.zeros(1, 4), torch.tensor([0])) == pytest.approx(1.3862944)
