"""Fine-tuning: what trains when, at which rate, and that a stopped run goes on as if nothing had happened."""

from __future__ import annotations

import copy
import os
import signal
from functools import partial

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CyclicLR,
    LambdaLR,
    LinearLR,
    OneCycleLR,
    SequentialLR,
    StepLR,
)

from metatransfer import (
    L2SP,
    Collection,
    Conv4,
    FineTuneModule,
    Full,
    GradualUnfreezing,
    HeadOnly,
    LabelledBatch,
    LastLayers,
    LayerwiseLRDecay,
    LayerwiseTransfer,
    TensorSource,
    UserError,
)
from processes import exit_code, in_two, started
from serving_by_names import labelled

CLASSES = 4


class BlobsParts(Collection):
    """Four kinds of noisy pictures."""

    def parts(self):
        generator = torch.Generator().manual_seed(0)
        labels = np.arange(80) % CLASSES
        means = torch.rand(CLASSES, 1, 16, 16, generator=generator)
        x = (means[labels] + 0.3 * torch.rand(80, 1, 16, 16, generator=generator)).clamp(0, 1)
        return {"all": TensorSource(x, labels, [f"class {i}" for i in range(CLASSES)], "blobs")}


def Blobs(**options):
    return labelled(BlobsParts(), **options)


def network(**arguments):
    return Conv4(image_size=16, hidden_channels=4, **arguments)


def module(policy=None, **arguments):
    torch.manual_seed(0)
    arguments = {"optimizer": partial(torch.optim.AdamW, lr=0.01)} | arguments
    backbone = arguments.pop("backbone", None) or network()
    return FineTuneModule(backbone, CLASSES, policy=policy, **arguments)


def batch(count=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return LabelledBatch(torch.rand(count, 1, 16, 16, generator=generator), torch.arange(count) % CLASSES)


def trainer(folder, **arguments):
    settings = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return pl.Trainer(default_root_dir=folder, **(settings | arguments))


def trainable(method):
    return [layer.name for layer in method.layers if all(v.requires_grad for v in layer.parameters.values())]


def names(method):
    return [layer.name for layer in method.layers]


# ---- what trains


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (None, slice(0, 5)),
        (Full(), slice(0, 5)),
        (HeadOnly(), slice(4, 5)),
        (LastLayers(2), slice(2, 5)),
        (GradualUnfreezing([1, 2]), slice(4, 5)),
        ([LastLayers(3), LastLayers(1)], slice(3, 5)),
    ],
    ids=["none", "full", "head", "last", "gradual", "both"],
)
def test_what_trains_at_the_start(policy, expected):
    method = module(policy)
    assert trainable(method) == names(method)[expected]
    frozen = [value for value in method.parameters() if not value.requires_grad]
    before = [value.clone() for value in frozen]
    method.train().training_loss(batch())[0].backward()
    assert all(value.grad is None for value in frozen)
    assert all(v.grad is not None and v.grad.isfinite().all() for v in method.parameters() if v.requires_grad)
    optimizer = method.configure_optimizers()
    optimizer.step()
    assert all(torch.equal(*pair) for pair in zip(frozen, before, strict=True))


def test_gradual_unfreezing_follows_its_schedule():
    method = module(GradualUnfreezing([1, 3]))
    seen = []
    for epoch in range(5):
        method.enter_epoch(epoch)
        seen.append(len(trainable(method)))
    assert seen == [1, 2, 2, 5, 5]  # the last epoch opens what is left
    method.enter_epoch(0)
    assert trainable(method) == ["head"]


def test_frozen_normalisation_and_dropout_are_frozen():
    """PITFALLS 25: no batch statistics, no update of them, no dropout, however often train() is called."""
    method = module(LastLayers(1), backbone=network(dropout=0.5)).train()
    method.train()
    state = copy.deepcopy(method.backbone.state_dict())
    x = batch().x
    torch.manual_seed(1)
    method.training_loss(batch())
    moved = [name for name, value in method.backbone.state_dict().items() if not torch.equal(value, state[name])]
    assert moved
    last = names(method)[3]
    assert all(name.startswith(last.rpartition(".")[0]) for name in moved)
    assert int(last.rpartition(".")[2]) <= min(int(name.split(".")[1]) for name in moved)
    # one sample's features before the last block do not depend on the others
    early = nn.Sequential(*[part for layer in method.layers[:3] for part in layer.modules])
    torch.testing.assert_close(early(x)[:1], early(x[:1]))
    method.eval()
    assert not any(part.training for part in method.modules())


def test_what_was_frozen_before_stays_frozen():
    backbone = network()
    next(backbone.parameters()).requires_grad_(False)
    method = module(GradualUnfreezing([0]), backbone=backbone)
    method.enter_epoch(3)
    assert sum(not value.requires_grad for value in method.parameters()) == 1
    twin = copy.deepcopy(method)
    twin.enter_epoch(0)
    assert sum(not value.requires_grad for value in twin.parameters()) == 1


def test_layers_are_copied_frozen_and_initialised_anew():
    backbone = network()
    first = copy.deepcopy(backbone)
    layers = names(module(backbone=backbone))[:4]
    method = module(LayerwiseTransfer(frozen=[layers[0]], reinitialised=[layers[3]]), backbone=backbone)
    same = [
        all(torch.equal(v, first.get_parameter(n)) for n, v in layer.parameters.items()) for layer in method.layers[:4]
    ]
    assert same == [True, True, True, False]
    assert trainable(method) == [*layers[1:], "head"]
    method = module(LayerwiseTransfer(copied=[layers[1]], frozen=[layers[0]]), backbone=copy.deepcopy(first))
    same = [
        all(torch.equal(v, first.get_parameter(n)) for n, v in layer.parameters.items()) for layer in method.layers[:4]
    ]
    assert same == [True, True, False, False]


def test_l2sp_against_the_formula():
    method = module(L2SP(alpha=0.2, beta=0.3)).double()
    start = copy.deepcopy(method.backbone)
    with torch.no_grad():
        for value in method.backbone.parameters():
            value.add_(torch.randn_like(value))
    one = LabelledBatch(batch().x.double(), batch().y)
    loss, outputs = method.training_loss(one)
    distance = sum(((v - w) ** 2).sum() for v, w in zip(method.backbone.parameters(), start.parameters(), strict=True))
    size = sum((value**2).sum() for value in method.head.parameters())
    expected = F.cross_entropy(outputs, one.y) + 0.1 * distance + 0.15 * size
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    # the starting point is in the checkpoint, and the decay of the optimiser acts nowhere
    other = module(L2SP(alpha=0.2, beta=0.3)).double()
    other.load_state_dict(method.state_dict())
    torch.testing.assert_close(other.eval().training_loss(one)[0], method.eval().training_loss(one)[0])
    assert {group["weight_decay"] for group in method.configure_optimizers().param_groups} == {0.0}


# ---- groups and rates


def test_groups_hold_every_parameter_once_with_its_rate_and_decay():
    method = module([GradualUnfreezing([1]), LayerwiseLRDecay(0.5)])
    groups = method.configure_optimizers().param_groups
    held = [id(value) for group in groups for value in group["params"]]
    assert sorted(held) == sorted(id(value) for value in method.parameters())
    for group in groups:
        place = names(method).index(group["name"].removesuffix(", without decay"))
        assert group["lr"] == pytest.approx(0.01 * 0.5 ** (4 - place))
        assert group["weight_decay"] == (0.01 if group["params"][0].dim() > 1 else 0.0)
        assert len({value.dim() > 1 for value in group["params"]}) == 1


SCHEDULERS = {
    "lambda": lambda o: LambdaLR(o, lambda epoch: 0.9**epoch),
    "one-cycle": lambda o: OneCycleLR(o, max_lr=0.02, total_steps=40),
    "cosine": lambda o: CosineAnnealingLR(o, T_max=6),
    "sequential": lambda o: SequentialLR(o, [LinearLR(o, 0.1, total_iters=2), CosineAnnealingLR(o, 4)], milestones=[2]),
    "step": lambda o: StepLR(o, 2),
    "cyclic": lambda o: CyclicLR(o, 0.001, 0.01, step_size_up=3, cycle_momentum=False),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_keeps_the_proportions(scheduler):
    method = module(LayerwiseLRDecay(0.5), lr_scheduler=SCHEDULERS[scheduler])
    found = method.configure_optimizers()
    optimizer, stepped = found["optimizer"], found["lr_scheduler"]["scheduler"]
    scales = np.array([group["lr_scale"] for group in optimizer.param_groups])
    for _ in range(6):
        rates = np.array([group["lr"] for group in optimizer.param_groups])
        if scheduler not in ("cosine", "sequential") or rates.min() > 1e-4:
            np.testing.assert_allclose(rates / rates[-1], scales / scales[-1], rtol=1e-6)
        optimizer.step()
        stepped.step()


def test_warm_up_rises_and_falls_over_the_whole_run(tmp_path):
    class Rates(pl.Callback):
        seen: list[float] = []  # noqa: RUF012 - of one test

        def on_train_batch_start(self, run, method, *_):
            self.seen.append(run.optimizers[0].param_groups[0]["lr"])

    watch = Rates()
    run = trainer(tmp_path, max_epochs=2, callbacks=[watch], enable_checkpointing=False)
    run.fit(module(warmup_fraction=0.25), datamodule=Blobs(batch_size=7, val_fraction=0.2))
    steps = len(watch.seen)
    assert steps == run.global_step
    rise = round(0.25 * steps)
    expected = [0.01 * min((i + 1) / rise, (steps - i) / (steps - rise)) for i in range(steps)]
    np.testing.assert_allclose(watch.seen, expected, rtol=1e-6)


def test_rare_classes_weigh_more_and_labels_are_smoothed(tmp_path):
    method = module(class_weight="balanced", label_smoothing=0.1)
    method._trainer = None
    method.class_weights = torch.tensor([1.0, 2.0, 3.0, 4.0])
    one = batch()
    loss, outputs = method.eval().training_loss(one)
    spread = torch.full((12, CLASSES), 0.1 / CLASSES).scatter_add(1, one.y[:, None], torch.full((12, 1), 0.9))
    terms = -(method.class_weights * spread * outputs.log_softmax(-1)).sum(1)
    torch.testing.assert_close(loss, terms.sum() / method.class_weights[one.y].sum())
    run = trainer(tmp_path, max_epochs=1, enable_checkpointing=False, limit_val_batches=0)
    data = Blobs()
    run.fit(method, datamodule=data)
    counts = torch.as_tensor(data.info().class_counts).float()
    torch.testing.assert_close(method.class_weights, counts.sum() / (CLASSES * counts))


# ---- it learns, and knows what its numbers are worth


def test_it_learns(tmp_path):
    method = module()
    run = trainer(tmp_path, max_epochs=12, enable_checkpointing=False)
    data = Blobs(batch_size=8)
    run.fit(method, datamodule=data)
    numbers = run.test(method, datamodule=data, verbose=False)[0]
    assert numbers["test/accuracy"] > 0.8
    baselines = method.baselines()
    assert set(baselines) == {"most frequent class", "pixel 1-NN"}
    for one in data.test_dataloader():
        x = torch.cat([part.x for part in data.train_samples()])
        y = torch.cat([part.y for part in data.train_samples()])
        nearest = y[((one.x[:, None] - x[None]) ** 2).flatten(2).sum(2).argmin(1)]
        assert torch.equal(baselines["pixel 1-NN"](one).argmax(1), nearest)


def test_the_twin_from_scratch_knows_nothing_and_trains_everything():
    method = module([HeadOnly(), LayerwiseLRDecay(0.5)])
    state = copy.deepcopy(method.state_dict())
    twin, again, other = method.from_scratch(3), method.from_scratch(3), method.from_scratch(4)
    assert trainable(twin) == names(twin)
    weights = [value for value in twin.parameters() if value.dim() > 1]
    for one, two, three, four in zip(
        weights, *([v for v in m.parameters() if v.dim() > 1] for m in (again, other, method)), strict=True
    ):
        assert torch.equal(one, two)
        assert not torch.equal(one, three)
        assert not torch.equal(one, four)
    assert all(torch.equal(value, state[name]) for name, value in method.state_dict().items())
    assert trainable(method) == ["head"]
    restarted = method.restarted(3)
    assert torch.equal(next(restarted.backbone.parameters()), next(method.backbone.parameters()))
    assert not torch.equal(restarted.head.linear.weight, method.head.linear.weight)


# ---- stopped and resumed


class Kill(pl.Callback):
    """The end of the process, without a word, after so many batches."""

    def __init__(self, after):
        self.after = after

    def on_train_batch_start(self, run, *_):
        if run.global_step == self.after:
            os.kill(os.getpid(), signal.SIGKILL)


def fit(folder, scheduler, *callbacks, resume=None):
    """Three phases over six epochs of six batches; a checkpoint every four batches."""
    pl.seed_everything(0, verbose=False)
    policy = [GradualUnfreezing([2, 4]), LayerwiseLRDecay(0.7), L2SP(0.01)]
    method = module(policy, backbone=network(dropout=0.2), lr_scheduler=SCHEDULERS[scheduler], lr_interval="step")
    saves = pl.callbacks.ModelCheckpoint(dirpath=folder, every_n_train_steps=4, save_last=True, save_top_k=0)
    run = trainer(folder, max_epochs=6, callbacks=[saves, *callbacks], num_sanity_val_steps=0)
    run.fit(method, datamodule=Blobs(batch_size=9), ckpt_path=resume)
    return method


def fit_until_killed(folder, scheduler):
    fit(folder, scheduler, Kill(15))


@pytest.mark.parametrize(
    "scheduler",
    ["sequential", *(pytest.param(name, marks=pytest.mark.slow) for name in ("lambda", "one-cycle", "cosine"))],
)
def test_killed_in_the_second_phase_it_goes_on_bit_equal(scheduler, tmp_path):
    """PITFALLS 26. The process is killed in its third epoch, where one layer more trains, in the middle of it."""
    whole = fit(tmp_path / "whole", scheduler)
    assert exit_code(started(fit_until_killed, tmp_path / "killed", scheduler)) == -signal.SIGKILL
    last = tmp_path / "killed" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 12
    resumed = fit(tmp_path / "resumed", scheduler, resume=last)
    for (name, one), two in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, two), name
    assert trainable(resumed) == names(resumed)


@pytest.mark.parametrize("step", [8, 16, 28])
def test_resumed_from_any_phase_it_goes_on_bit_equal(step, tmp_path):
    """From the middle of an epoch, too, where no epoch starts."""
    saves = pl.callbacks.ModelCheckpoint(dirpath=tmp_path / "all", every_n_train_steps=step, save_top_k=-1)
    whole = fit(tmp_path / "whole", "one-cycle", saves)
    found = next(path for path in (tmp_path / "all").glob("*.ckpt") if f"step={step}." in path.name)
    resumed = fit(tmp_path / "resumed", "one-cycle", resume=found)
    for (name, one), two in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, two), name


# ---- several processes


def fit_in(processes, path):
    """Three phases, 18 samples in a step, all processes together."""
    pl.seed_everything(0, verbose=False)
    method = module(
        [GradualUnfreezing([1, 2]), LayerwiseLRDecay(0.7)],
        backbone=network(norm="group"),  # no statistics of a process's own part
        optimizer=partial(torch.optim.SGD, lr=0.5, momentum=0.9),
    ).double()
    run = trainer(
        path.parent, max_epochs=4, devices=processes, strategy="ddp" if processes > 1 else "auto", precision="64-true",
        limit_val_batches=0, num_sanity_val_steps=0, enable_checkpointing=False,
    )  # fmt: skip
    run.fit(method, datamodule=Blobs(batch_size=18 // processes))
    torch.save(method.state_dict(), path.with_name(f"{path.name}-{run.global_rank}.pt"))


def fit_as_one_of_two(rank, path):
    fit_in(2, path)


def test_two_processes_go_through_the_phases_as_one_does(tmp_path):
    """torch's wrapper averages only what could be trained when it was made: it is made anew at every phase."""
    fit_in(1, tmp_path / "one")
    expected = torch.load(tmp_path / "one-0.pt", weights_only=True)
    in_two(fit_as_one_of_two, tmp_path / "two")
    for rank in range(2):
        found = torch.load(tmp_path / f"two-{rank}.pt", weights_only=True)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-11)
    start = module([GradualUnfreezing([1, 2])], backbone=network(norm="group")).double().state_dict()
    assert all(not torch.equal(expected[name], value) for name, value in start.items() if value.dim() > 1)


# ---- wrong input


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: LastLayers(0), "count must be a number above 0"),
        (lambda: module(LastLayers(9)), "count=9, but the backbone has only 4 layers"),
        (lambda: GradualUnfreezing([]), "schedule must be a list of epochs from 0 in increasing order"),
        (lambda: GradualUnfreezing([3, 1]), r"but is \[3, 1\]"),
        (lambda: module(GradualUnfreezing([1] * 9)), "schedule has 9 epochs, but the backbone has only 4 layers"),
        (lambda: LayerwiseLRDecay(0), "factor must be a number above 0"),
        (lambda: LayerwiseLRDecay(1.5), "factor"),
        (lambda: L2SP(-1), "alpha must be"),
        (lambda: module(LayerwiseTransfer(frozen=["layers.x"])), "'layers.x' matches no layer of the backbone"),
        (lambda: module(LayerwiseTransfer(frozen=["*"], reinitialised=["*"])), "is both frozen and reinitialised"),
        (lambda: FineTuneModule(network()), "FineTuneModule needs num_classes"),
        (lambda: module(label_smoothing=1.0), "label_smoothing must be in"),
        (lambda: module(class_weight="some"), "class_weight"),
        (lambda: module(warmup_fraction=0.1, lr_scheduler=SCHEDULERS["step"]), "both set the learning rates"),
    ],
)
def test_wrong_arguments(make, sentence):
    with pytest.raises(UserError, match=sentence):
        make()


class Nothing(Full):
    """Lets nothing train."""

    def trains(self, parameter, epoch):
        return False


def test_a_policy_that_freezes_everything_is_refused():
    with pytest.raises(UserError, match=r"Nothing\(\) freezes all parameters in epoch 0"):
        module(Nothing())


def test_other_data_than_it_was_built_for_is_refused(tmp_path):
    run = trainer(tmp_path, max_epochs=1, enable_checkpointing=False)
    with pytest.raises(UserError, match="built for 3 classes, but the data has 4"):
        run.fit(FineTuneModule(network(), 3), datamodule=Blobs())
    with pytest.raises(UserError, match=r"Conv4 was built for samples of shape \(1, 28, 28\), but the data has"):
        run.fit(FineTuneModule(Conv4(hidden_channels=4), CLASSES), datamodule=Blobs())


def test_a_checkpoint_of_other_classes_is_refused(tmp_path):
    class RenamedParts(BlobsParts):
        def parts(self):
            source = super().parts()["all"]
            return {"all": TensorSource(source.data, source.labels, ["a", "b", "c", "d"], "blobs")}

    def Renamed(**options):
        return labelled(RenamedParts(), **options)

    run = trainer(tmp_path, max_epochs=1)
    run.fit(module(), datamodule=Blobs())
    path = tmp_path / "one.ckpt"
    run.save_checkpoint(path)
    assert FineTuneModule.load_from_checkpoint(path).class_names[0] == "class 0"
    with pytest.raises(UserError, match="trained for the classes class 0, class 1, class 2"):
        trainer(tmp_path).test(module(), datamodule=Renamed(), ckpt_path=path)
