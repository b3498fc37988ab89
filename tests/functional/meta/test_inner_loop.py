"""The engine against an independent loop and hand-made references, in float64."""

import copy

import pytest
import torch
import torch.nn.functional as F
from engine_networks import NETWORKS, RECURRENT, TASKS, WAYS, build, conv, tasks, trainable
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from metatransfer import UserError
from metatransfer.functional import (
    adam,
    adapt_tasks,
    all_finite,
    first_divergence,
    inner_loop,
    momentum,
    over_tasks,
    sgd,
    stateless,
)  # fmt: skip
from metatransfer.functional.losses import episode_loss

LR = 0.3
ENGINES = {
    "one": {"engine": "one"},
    "tasks-loop": {"batching": "loop"},
    "tasks-vmap": {"batching": "vmap"},
    "tasks-vmap-chunks": {"batching": "vmap", "chunk_size": 2},
    "tasks-loop-checkpoint": {"batching": "loop", "checkpoint": True},
    "tasks-vmap-checkpoint": {"batching": "vmap", "checkpoint": True},
}


def ours(
    net, data, steps, *, engine="tasks", batching="loop", chunk_size=None, first_order=False, start=None,
    checkpoint=False,
):  # fmt: skip
    start = trainable(net) if start is None else start
    forward = stateless(net)
    options = {"steps": steps, "update": sgd(LR), "first_order": first_order}
    spread = {"batching": batching, "chunk_size": chunk_size}

    def task(sx, sy, qx, qy):
        return F.cross_entropy(forward(inner_loop(forward, start, sx, sy, **options), qx), qy)

    if engine == "one":
        return over_tasks(task, *data, **spread).mean()
    [adapted], _ = adapt_tasks(forward, start, *data[:2], checkpoint=checkpoint, **options, **spread)
    return over_tasks(lambda params, x, y: F.cross_entropy(forward(params, x), y), adapted, *data[2:], **spread).mean()


def reference(net, data, steps, *, first_order=False, start=None):
    """The textbook: plain network in train mode, plain autograd, one task after the other."""
    start = trainable(net) if start is None else start
    net = copy.deepcopy(net)
    losses = []
    for sx, sy, qx, qy in zip(*data, strict=True):
        params = dict(start)
        for _ in range(steps):
            with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
                loss = F.cross_entropy(functional_call(net, params, (sx,)), sy)
            gradients = torch.autograd.grad(
                loss, list(params.values()), create_graph=not first_order, materialize_grads=True
            )
            params = {name: params[name] - LR * g for name, g in zip(params, gradients, strict=True)}
        losses.append(F.cross_entropy(functional_call(net, params, (qx,)), qy))
    return torch.stack(losses).mean()


def gradients(loss, params):
    return [g.clone() for g in torch.autograd.grad(loss, list(params.values()), materialize_grads=True)]


def relative_error(found, expected):
    scale = torch.cat([g.flatten() for g in expected]).norm()
    return max(float((a - b).norm() / scale) for a, b in zip(found, expected, strict=True))


@pytest.mark.grid(3)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("name", NETWORKS)
def test_second_order_gradient_equals_plain_autograd(name, steps, engine):
    net, data = build(name), tasks(name)
    expected_loss = reference(net, data, steps)
    loss = ours(net, data, steps, **ENGINES[engine])
    assert abs(float((loss - expected_loss).detach())) < 1e-12
    params = trainable(net)
    assert relative_error(gradients(loss, params), gradients(expected_loss, params)) < 1e-10


@pytest.mark.grid(3)
@pytest.mark.parametrize("engine", ["one", "tasks-loop", "tasks-loop-checkpoint"])
@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers_equal_plain_autograd_in_a_loop(name, steps, engine):
    net, data = build(name), tasks(name)
    params = trainable(net)
    expected = gradients(reference(net, data, steps), params)
    assert relative_error(gradients(ours(net, data, steps, **ENGINES[engine]), params), expected) < 1e-10


@pytest.mark.grid(3)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["batch_norm", "instance_norm", "layer_norm", "tied", "frozen", "embedding"])
def test_first_order_is_fomaml(name, engine):
    net, data = build(name), tasks(name)
    params = trainable(net)
    found = gradients(ours(net, data, 3, first_order=True, **ENGINES[engine]), params)
    assert relative_error(found, gradients(reference(net, data, 3, first_order=True), params)) < 1e-10
    second = gradients(ours(net, data, 3, **ENGINES[engine]), params)
    assert relative_error(found, second) > 1e-3  # or this test would prove nothing


def test_first_order_detaches_gradients_not_parameters():
    net, data = build("layer_norm"), tasks("layer_norm")
    sx, sy = data[0][0], data[1][0]
    adapted = inner_loop(stateless(net), trainable(net), sx, sy, steps=4, update=sgd(LR), first_order=True)
    for name, value in trainable(net).items():  # d theta_K / d theta_0 is the identity
        [gradient] = torch.autograd.grad(adapted[name].sum(), [value], retain_graph=True)
        assert torch.equal(gradient, torch.ones_like(value))


@pytest.mark.parametrize("engine", ENGINES)
def test_first_order_holds_for_what_does_not_adapt(engine):
    """Head-only adaptation (ANIL): inner gradients are constants also for the backbone that they run through."""
    net, data = build("layer_norm"), tasks("layer_norm")
    head = {name: value for name, value in net.named_parameters() if name.startswith("4.")}
    body = {name: value for name, value in net.named_parameters() if not name.startswith("4.")}
    found = ours(net, data, 3, first_order=True, start=head, **ENGINES[engine])
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


@pytest.mark.parametrize("engine", ENGINES)
def test_partial_adaptation_is_differentiable_in_the_rest(engine):
    net, data = build("batch_norm"), tasks("batch_norm")
    head = {name: value for name, value in net.named_parameters() if name.startswith("8.")}
    everything = trainable(net)
    assert 0 < len(head) < len(everything)
    found = gradients(ours(net, data, 3, start=head, **ENGINES[engine]), everything)
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
    found = ours(net, data, 3, engine="one")
    torch.manual_seed(12)
    other = ours(net, data, 3, engine="one")
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

    def loss(outputs, targets):
        return outputs.sum()

    # the gradient of the sum shows the mask of each step
    def keep(params, found, step):
        seen.append(step)
        return {name: value - found[name] for name, value in params.items()}

    def adapted():
        options = {"steps": 1, "update": keep, "loss": loss, "batching": batching, "chunk_size": chunk_size}
        return adapt_tasks(stateless(net), dict(net.named_parameters()), x, x, **options).steps[0]["0.weight"]

    first, between = adapted(), adapted()
    between = between - first
    assert (between.flatten(1).abs().sum(1) > 0).all()
    assert len({tuple(row.flatten().tolist()) for row in first}) == 6
    assert set(seen) == {0}


@pytest.mark.grid(3)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", NETWORKS)
def test_state_dict_and_modes_stay_as_they_are(name, mode, engine):
    net, data = build(name).train(mode == "train"), tasks(name)
    before = copy.deepcopy(net.state_dict())
    modes = [layer.training for layer in net.modules()]
    gradients(ours(net, data, 2, **ENGINES[engine]), trainable(net))
    after = net.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert modes == [layer.training for layer in net.modules()]
    assert not any("forward" in layer.__dict__ for layer in net.modules())
    assert all(value.grad is None for value in net.parameters())


def test_an_error_inside_the_network_leaves_it_as_it_was():
    net = build("batch_norm")
    with pytest.raises(RuntimeError):
        stateless(net)(trainable(net), torch.zeros(2, 3, 6, 6, dtype=torch.float64))
    assert not any("forward" in layer.__dict__ for layer in net.modules())
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), trainable(net).values(), strict=True))


@pytest.mark.parametrize("batching", ["loop", "vmap"])
def test_no_steps_is_identity(batching):
    net, data = build("batch_norm"), tasks("batch_norm")
    start = trainable(net)
    [adapted], _ = adapt_tasks(stateless(net), start, *data[:2], steps=0, update=sgd(LR), batching=batching)
    assert list(adapted) == list(start)
    assert all(torch.equal(adapted[name], value.expand(TASKS, *value.shape)) for name, value in start.items())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("context", [torch.inference_mode, torch.no_grad])
def test_adapts_where_autograd_is_off(context, engine):
    net, data = build("batch_norm").eval(), tasks("batch_norm")
    expected = float(ours(net, data, 3, **ENGINES[engine]).detach())
    with context():
        copies = tuple(tensor.clone() for tensor in data)  # made inside, as a loader would
        loss = ours(net, copies, 3, **ENGINES[engine])
        assert not loss.requires_grad
        assert float(loss) == pytest.approx(expected, abs=1e-13)


@pytest.mark.parametrize("batching", ["loop", "vmap"])
def test_inner_gradients_ignore_autocast(batching):
    torch.manual_seed(0)
    net = conv(lambda: nn.BatchNorm2d(4)).train()
    sx, sy, _, _ = tasks("batch_norm", torch.float32)
    dtypes = set()

    def watched(params, found, step):
        dtypes.update(value.dtype for value in found.values())
        return sgd(LR)(params, found, step)

    def run(x):
        return adapt_tasks(stateless(net), trainable(net), x, sy, steps=2, update=watched, batching=batching).steps[0]

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
        forward = stateless(net)
        [adapted], _ = adapt_tasks(forward, start, *data[:2], steps=2, update=sgd(rates), batching=batching)
        query = lambda params, x, y: F.cross_entropy(forward(params, x), y)  # noqa: E731
        return over_tasks(query, adapted, *data[2:], batching=batching).mean()

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
    [adapted], _ = adapt_tasks(
        stateless(net), dict(net.named_parameters()), x, y, steps=1, update=sgd(0.1), batching=batching
    )
    for index in range(2):
        residual = net(x[index]) - y[index]
        expected = net.weight - 0.1 * 2 / 8 * residual.T @ x[index]
        torch.testing.assert_close(adapted["weight"][index], expected)


def test_task_order_and_composition_do_not_matter():
    net, data = build("batch_norm"), tasks("batch_norm")
    for batching in ("loop", "vmap"):
        options = {"steps": 3, "update": sgd(LR), "batching": batching}
        [together], _ = adapt_tasks(stateless(net), trainable(net), *data[:2], **options)
        for index in range(TASKS):
            own = (part[index : index + 1] for part in data[:2])
            [alone], _ = adapt_tasks(stateless(net), trainable(net), *own, **options)
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


# ---- what adapt_tasks adds

WAYS_THROUGH = [("loop", False), ("vmap", False), ("loop", True), ("vmap", True)]


@pytest.mark.parametrize(("batching", "checkpoint"), WAYS_THROUGH)
@pytest.mark.parametrize("rule", ["momentum", "adam"])
def test_rules_with_state_equal_the_rule_in_a_plain_loop(rule, batching, checkpoint):
    net, data = build("layer_norm"), tasks("layer_norm")
    params, forward = trainable(net), stateless(net)
    lr = torch.tensor(0.05, dtype=torch.float64, requires_grad=True)
    make = momentum(lr, 0.9) if rule == "momentum" else adam(lr, eps=1e-3)
    options = {"steps": 3, "update": make, "batching": batching, "checkpoint": checkpoint}
    [adapted], _ = adapt_tasks(forward, params, *data[:2], clip=0.5, **options)
    losses = over_tasks(lambda p, x, y: F.cross_entropy(forward(p, x), y), adapted, *data[2:], batching=batching)
    expected = []
    for sx, sy, qx, qy in zip(*data, strict=True):
        current, state = dict(params), make.start(params)
        for step in range(3):
            loss = F.cross_entropy(functional_call(net, current, (sx,)), sy)
            found = torch.autograd.grad(loss, list(current.values()), create_graph=True)
            norm = torch.stack([g.square().sum() for g in found]).sum().sqrt()
            clipped = {name: g * (0.5 / norm).clamp(max=1) for name, g in zip(current, found, strict=True)}
            current, state = make.update(current, clipped, state, step)
        expected.append(F.cross_entropy(functional_call(net, current, (qx,)), qy))
    everything = params | {"lr": lr}
    ours_, theirs = (gradients(loss, everything) for loss in (losses.mean(), torch.stack(expected).mean()))
    assert relative_error(ours_, theirs) < 1e-10


@pytest.mark.parametrize(("batching", "checkpoint"), WAYS_THROUGH)
@pytest.mark.parametrize("differentiable", [True, False])
def test_the_trajectory_is_what_fewer_steps_give(batching, checkpoint, differentiable):
    net, data = build("batch_norm"), tasks("batch_norm")
    options = {"update": sgd(LR), "batching": batching, "checkpoint": checkpoint}
    with torch.set_grad_enabled(differentiable):
        seen, _ = adapt_tasks(stateless(net), trainable(net), *data[:2], steps=3, trajectory=True, **options)
        assert len(seen) == 4
        for steps, params in enumerate(seen):
            [alone], _ = adapt_tasks(stateless(net), trainable(net), *data[:2], steps=steps, **options)
            for name, value in params.items():
                torch.testing.assert_close(value, alone[name], rtol=1e-12, atol=1e-12)
                assert value.requires_grad == differentiable


@pytest.mark.parametrize(("batching", "checkpoint"), WAYS_THROUGH)
def test_parameters_fixed_at_each_step_and_starts_of_each_task_get_their_gradients(batching, checkpoint):
    net, data = build("batch_norm"), tasks("batch_norm")
    forward = stateless(net)
    scales = [torch.full((4,), 1.0 + step, dtype=torch.float64, requires_grad=True) for step in range(3)]
    heads = torch.randn(TASKS, WAYS, dtype=torch.float64, requires_grad=True)
    start = {name: value for name, value in trainable(net).items() if name not in {"1.weight", "8.bias"}}
    fixed = lambda step: {"1.weight": scales[step]}  # noqa: E731
    [adapted], _ = adapt_tasks(
        forward, start, *data[:2], steps=2, update=sgd(LR), task_params={"8.bias": heads}, fixed_at=fixed,
        batching=batching, checkpoint=checkpoint,
    )  # fmt: skip
    query = lambda p, x, y: F.cross_entropy(forward({**fixed(2), **p}, x), y)  # noqa: E731
    loss = over_tasks(query, adapted, *data[2:], batching=batching).mean()
    expected = []
    for task, (sx, sy, qx, qy) in enumerate(zip(*data, strict=True)):
        current = {**start, "8.bias": heads[task]}
        for step in range(2):
            inner = F.cross_entropy(functional_call(net, {**fixed(step), **current}, (sx,)), sy)
            found = torch.autograd.grad(inner, list(current.values()), create_graph=True)
            current = {name: current[name] - LR * g for name, g in zip(current, found, strict=True)}
        expected.append(F.cross_entropy(functional_call(net, {**fixed(2), **current}, (qx,)), qy))
    everything = {**start, "heads": heads, **{f"scale {step}": scale for step, scale in enumerate(scales)}}
    assert relative_error(gradients(loss, everything), gradients(torch.stack(expected).mean(), everything)) < 1e-10


@pytest.mark.parametrize("batching", ["loop", "vmap"])
def test_rows_choose_the_samples_of_each_step(batching):
    net, data = build("layer_norm"), tasks("layer_norm")
    rows = torch.stack([torch.stack([torch.randperm(6)[:4] for _ in range(2)]) for _ in range(TASKS)])
    [found], _ = adapt_tasks(
        stateless(net), trainable(net), *data[:2], steps=2, update=sgd(LR), rows=rows, batching=batching
    )
    for task in range(TASKS):
        params = trainable(net)
        for step in range(2):
            x, y = data[0][task][rows[task, step]], data[1][task][rows[task, step]]
            params = inner_loop(stateless(net), params, x, y, steps=1, update=sgd(LR))
        for name, value in params.items():
            torch.testing.assert_close(found[name][task], value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("batching", ["loop", "vmap"])
def test_checkpointing_repeats_the_dropout_masks(batching):
    net, data = conv(lambda: nn.GroupNorm(2, 4), dropout=nn.Dropout(0.4)).double().train(), tasks("batch_norm")
    params = trainable(net)
    found = []
    for checkpoint in (False, True):
        torch.manual_seed(5)
        loss = ours(net, data, 3, batching=batching, checkpoint=checkpoint)
        found.append(gradients(loss, params))
    assert relative_error(*found) < 1e-12


@pytest.mark.parametrize("batching", ["loop", "vmap"])
def test_nothing_to_adapt_is_answered_in_a_sentence(batching):
    net, data = build("unused"), tasks("unused")
    options = {"steps": 1, "update": sgd(LR), "batching": batching}
    with pytest.raises(UserError, match="no parameter to adapt"):
        adapt_tasks(stateless(net), {}, *data[:2], **options)
    with pytest.raises(UserError, match="no parameter to adapt"):
        inner_loop(stateless(net), {}, data[0][0], data[1][0], steps=1, update=sgd(LR))
    idle = {name: value for name, value in net.named_parameters() if name.startswith("idle")}
    for value in net.used.parameters():
        value.requires_grad_(False)
    with pytest.raises(UserError, match=r"none of the adapted parameters \(idle.weight, idle.bias\) affects"):
        adapt_tasks(stateless(net), idle, *data[:2], **options)


def test_divergence_is_located():
    net, data = build("layer_norm"), tasks("layer_norm")
    start = trainable(net)
    data[0][1, 2] = 1e200
    seen, _ = adapt_tasks(
        stateless(net), start, *data[:2], steps=3, update=sgd(1e200), trajectory=True, batching="vmap"
    )
    assert not all_finite(seen[-1])
    step, task, name = first_divergence(seen)
    assert all(torch.isfinite(value).all() for value in seen[step].values())  # the state before that step
    assert not torch.isfinite(seen[step + 1][name][task]).all()
    assert all_finite(seen[0])
    assert first_divergence(seen[:1]) is None


@pytest.mark.parametrize(("clip", "expected"), [(None, -2.5), (1.0, 1.0), (4.0, -1.5)])
def test_one_task_is_clipped_and_takes_the_parameters_of_each_step(clip, expected):
    adapted = inner_loop(
        lambda params, x: params["w"] * params["scale"] * x, {"w": torch.tensor([2.0])},
        torch.tensor([[3.0]]), torch.tensor([0]), steps=2, update=sgd(0.5), loss=lambda outputs, _: outputs.sum(),
        clip=clip, fixed_at=lambda step: {"scale": torch.tensor(1.0 + step)},
    )  # fmt: skip
    assert adapted["w"].item() == pytest.approx(expected)
