"""The compiled step: the gradients of the uncompiled one, traced again when what it depends on changes."""

from __future__ import annotations

import copy
import inspect
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed

from inner_options import grouped
from metatransfer import (
    MLP,
    Backbone,
    Conv4,
    Episode,
    LearnedOptimizerModule,
    MAMLModule,
    MAMLPlusPlusModule,
    MetaSGDModule,
    UserError,
)
from metatransfer.functional.meta.compiled import CompiledLoss
from metatransfer.methods.gradient.maml_plus_plus import OuterSchedule
from metatransfer.methods.options import Execution, InnerLoop

TINY = InnerLoop(steps=1, lr=0.01)


@pytest.fixture
def traces(monkeypatch):
    """Leaves the compiler out, which takes long: what is traced runs as it is. Counts the traces."""
    found = []
    monkeypatch.setattr(torch, "compile", lambda graph, **options: found.append(graph) or graph)
    return found


def images(tasks=3, seed=0):
    draw, labels = torch.Generator().manual_seed(seed), torch.arange(3)
    return Episode(
        torch.rand(tasks, 3, 1, 28, 28, dtype=torch.float64, generator=draw), labels.expand(tasks, -1),
        torch.rand(tasks, 6, 1, 28, 28, dtype=torch.float64, generator=draw), labels.repeat(2).expand(tasks, -1),
    )  # fmt: skip


def curves(tasks=4, seed=0):
    draw = torch.Generator().manual_seed(seed)
    x = torch.rand(tasks, 10, 1, dtype=torch.float64, generator=draw) * 4
    return Episode(x[:, :5], x[:, :5].sin(), x[:, 5:], x[:, 5:].sin())


def step(module, batch):
    module.zero_grad()
    loss, outputs = module.training_loss(batch)
    loss.backward()
    grads = {name: value.grad.clone() for name, value in module.named_parameters() if value.requires_grad}
    return {"loss": loss.detach(), "outputs": outputs.detach(), **grads}


CASES = {
    "MAML": (MAMLModule, {"inner_steps": 2}),
    "a loop": (MAMLModule, {"batching": "loop"}),
    "first order": (MAMLModule, {"first_order": True}),
    "support": (MAMLModule, {"batch_norm": "support"}),
    "running": (MAMLModule, {"batch_norm": "running"}),
    "Meta-SGD": (MetaSGDModule, {}),
    "MAML++": (MAMLPlusPlusModule, {"inner_steps": 2}),
    "regression": (LearnedOptimizerModule, {"inner_steps": 2, "inner_lr": 0.01}),
}


def build(case, **options):
    kind, own = CASES[case]
    network, outputs = (MLP((1,), (8,)), 1) if case == "regression" else (Conv4(hidden_channels=4), 3)
    return kind(network, outputs, **grouped(kind, **{**options, **own})).double().train()


def uncompiled(module):
    plain = copy.deepcopy(module)
    plain.execution = replace(module.execution, compile=False)
    return plain


@pytest.mark.parametrize(
    "case", [pytest.param(one, marks=() if one in {"first order", "regression"} else pytest.mark.slow) for one in CASES]
)
def test_loss_outputs_and_gradients_are_those_of_the_plain_step(case, traces):
    torch.manual_seed(0)
    compiled = build(case, compile=True, batching="vmap")
    plain = uncompiled(compiled)
    for seed in (0, 1):  # another meta-batch through the same trace
        batch = curves(seed=seed) if case == "regression" else images(tasks=2, seed=seed)
        one, two = step(compiled, batch), step(plain, batch)
        assert one.keys() == two.keys()
        for name in one:
            torch.testing.assert_close(one[name], two[name], rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")
        with torch.no_grad():  # and other weights
            for mine, theirs in zip(compiled.parameters(), plain.parameters(), strict=True):
                mine.add_(0.01)
                theirs.copy_(mine)
    assert len(traces) == 1
    assert all(torch.equal(v, plain.state_dict()[n]) for n, v in compiled.state_dict().items())


@pytest.mark.slow
def test_what_changes_the_step_makes_a_new_trace(traces):
    module = MAMLPlusPlusModule(
        MLP((1,), (8,)), 1, inner=InnerLoop(steps=2, lr=0.1), execution=Execution(compile=True),
        schedule=OuterSchedule(loss_annealing_epochs=2, first_order_epochs=1),
    )  # fmt: skip
    module = module.double().train()
    plain = uncompiled(module)
    for epoch, expected in ((0, 1), (0, 1), (1, 2), (2, 3), (3, 3)):
        for each in (module, plain):
            each._trainer = SimpleNamespace(current_epoch=epoch, barebones=False)
        one, two = step(module, curves()), step(plain, curves())
        for name in one:
            torch.testing.assert_close(one[name], two[name], rtol=1e-9, atol=1e-11)
        assert len(traces) == expected
    module.training_loss(curves(tasks=2))
    assert len(traces) == 4  # another size


class Half(Backbone):
    """Has a layer that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused, self.out_features = nn.Linear(1, 4), nn.Linear(1, 4), 4

    def forward(self, x):
        return self.used(x).tanh()


def test_a_parameter_that_no_task_reaches_has_no_gradient(traces):
    module = MAMLModule(Half(), 1, inner=TINY, execution=Execution(compile=True)).double().train()
    module.training_loss(curves())[0].backward()
    assert module.backbone.unused.weight.grad is None
    assert module.backbone.used.weight.grad is not None
    with pytest.raises(UserError, match=r"first meta-batch does not depend on backbone\.unused\.weight"):
        module.on_after_backward()


def test_divergence_is_named(traces):
    module = MAMLModule(MLP((1,), (8,)), 1, inner=InnerLoop(steps=5, lr=1e200), execution=Execution(compile=True))
    with pytest.raises(UserError, match="the inner loop diverged"):
        module.double().train().training_loss(curves())


def test_through_the_real_compiler():
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs g++ on a CPU")
    module = MAMLModule(MLP((1,), (4,)), 1, inner=TINY, execution=Execution(compile=True)).double().train()
    one = step(module, curves(tasks=2))
    for name, value in step(uncompiled(module), curves(tasks=2)).items():
        torch.testing.assert_close(one[name], value, rtol=1e-9, atol=1e-11)


def test_a_compiler_that_fails_is_named(monkeypatch):
    # torch 2.6 takes no third argument
    third = (None,) * (len(inspect.signature(BackendCompilerFailed.__init__).parameters) - 3)

    def broken(graph, **options):
        def run(*arguments):
            raise BackendCompilerFailed(lambda: None, RuntimeError("no g++ here"), *third)

        return run

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(UserError, match=r"compile=True needs a working compiler .*no g\+\+ here"):
        CompiledLoss(lambda params, x: ((params["w"] * x).sum(),))({"w": torch.ones(2)}, torch.ones(2))


def test_not_with_checkpointed_steps():
    with pytest.raises(UserError, match=r"execution\.compile and inner\.checkpoint cannot be combined"):
        MAMLModule(MLP((1,), (4,)), 1, **grouped(MAMLModule, compile=True, checkpoint=True))
