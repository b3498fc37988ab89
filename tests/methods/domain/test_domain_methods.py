"""What holds for every method that adapts to a domain."""

from __future__ import annotations

import copy
import math
import warnings
from functools import partial

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from domain_toys import (
    ADAPTING,
    CLASSES,
    EVERY,
    METHODS,
    CloudPoints,
    Clouds,
    batch,
    clouds,
    fit,
    module,
    norms,
    same,
    served,
    trainer,
)
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch.optim.lr_scheduler import StepLR

from contract import DOMAIN_CONFIGS
from metatransfer.batches import DomainSamples, LabelledBatch
from metatransfer.errors import UserError
from metatransfer.functional.intervals import wilson
from metatransfer.methods.domain.adabn import AdaBNModule
from metatransfer.methods.domain.adaptation import Annealing, Ramp
from metatransfer.methods.domain.adda import ADDAModule
from metatransfer.methods.domain.alternating import AlternatingModule
from metatransfer.methods.domain.dann import DANNModule
from metatransfer.methods.domain.mcd import MCDModule
from metatransfer.methods.domain.source_only import SourceOnlyModule
from metatransfer.metrics.validators import Entropy
from metatransfer.nn import PerceptronHead

BATCHES = 6  # of an epoch of the clouds
every = pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
adapting = pytest.mark.parametrize("kind", ADAPTING, ids=lambda kind: kind.__name__)
with_dropout = partial(PerceptronHead, hidden_sizes=(8,), dropout=0.3)


class Saves(pl.Callback):
    """Keeps the state of a run after some of its batches, and what each batch saw."""

    def __init__(self, folder=None, after=()):
        self.folder, self.after, self.seen, self.rates, self.batches = folder, after, [], [], 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append(pl_module.progress)
        self.rates.append([group["lr"] for one in trainer.optimizers for group in one.param_groups])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.batches += 1
        if self.batches in self.after:
            trainer.save_checkpoint(self.folder / f"{self.batches}.ckpt")


def test_all_methods_are_found():
    names = {kind.__name__ for kind in METHODS}
    assert names >= {"DANNModule", "ImportanceWeightedModule", "AdaptedFeaturesModule", "SourceOnlyModule"}
    written = {path.stem for path in DOMAIN_CONFIGS}
    assert {kind.__module__.rpartition(".")[2] for kind in METHODS} <= written
    assert {kind.__name__ for kind in METHODS if kind not in EVERY} == {"AdaptedFeaturesModule"}


# ---- gradients


@every
@pytest.mark.parametrize("norm", [True, False])
def test_every_trainable_parameter_gets_a_finite_gradient(kind, norm):
    if kind is AdaBNModule and not norm:
        pytest.skip("needs BatchNorm")
    method = module(kind, norm=norm).double().train()
    loss, outputs = method.training_loss(batch(dtype=torch.float64))
    loss.backward()
    assert loss.dim() == 0
    assert outputs.shape == (6, CLASSES)
    for name, parameter in method.named_parameters():
        if kind is ADDAModule and name.startswith(("discriminator", "source_backbone")):
            continue  # learn in the second part, or never
        if parameter.requires_grad and not (kind is AdaBNModule and ".target." in name):
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert "bias" in name or parameter.grad.abs().max() > 0, name


@pytest.mark.grid(3)
@every
def test_a_run_moves_every_trainable_parameter(kind):
    method = module(kind, **({"pretrain_fraction": 0.5} if kind is ADDAModule else {}))
    before = copy.deepcopy(dict(method.named_parameters()))
    fit(method, clouds(), max_epochs=2)
    for name, parameter in method.named_parameters():
        assert parameter.isfinite().all(), name
        assert "bias" in name or not torch.equal(parameter, before[name]), name


class ScrambledPoints(CloudPoints):
    """The same samples with the labels of others."""

    def parts(self):
        found = super().parts()["all"]
        found.targets = np.random.default_rng(0).permutation(found.targets)
        return {"all": found}


@pytest.mark.grid(3)
@every
def test_labels_of_the_target_change_nothing(kind):
    garbage = served(ScrambledPoints)(shortcut=False, draw=2, val_fraction=0.2, test_fraction=0.4)
    logged, found, hidden = [], [], []
    for data in (clouds(), clouds(targets={"astray": garbage})):
        method = module(kind)
        running = fit(method, data, max_epochs=2)
        found.append(method)
        logged.append({k: float(v) for k, v in running.callback_metrics.items() if not k.startswith("oracle/")})
        hidden.append(torch.cat([part.y for part in data.test_dataloader()[0]]))
    assert not torch.equal(*hidden)
    assert same(*found)
    assert logged[0] == pytest.approx(logged[1], nan_ok=True)
    assert {"val/selection", "val/source_accuracy"} <= logged[0].keys()


@pytest.mark.grid(3)
@every
def test_a_batch_larger_than_its_domain_names_the_size_to_set(kind):
    method, data = module(kind), clouds(batch_size=200, target_batch_size=150)
    with pytest.warns(UserWarning, match="target_batch_size is 150") as told:
        trainer(max_epochs=3).fit(method, data)
    sentences = [str(one.message) for one in told if "each batch repeats" in str(one.message)]
    assert len(sentences) == 2
    assert "batch_size is 200, but there are only 144 such training samples" in sentences[0]
    assert "set data.target_batch_size to 96 or less" in sentences[1]
    assert all(value.isfinite().all() for value in method.state_dict().values())
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*each batch repeats")
        warnings.filterwarnings("ignore", category=UserWarning, module="lightning")
        trainer(max_epochs=1).fit(module(kind), clouds(batch_size=96))


# ---- one seed, one run; a stopped run goes on


@pytest.mark.grid(3)
@every
def test_the_same_seed_gives_the_same_run(kind):
    runs = []
    for seed in (0, 0, 1):
        method = module(kind, head=with_dropout, seed=seed)
        fit(method, clouds(seed=seed), seed=seed, max_epochs=2)
        runs.append(method)
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


@pytest.mark.grid(3)
@every
@pytest.mark.parametrize("schedule", ["annealing", "epochs"])
def test_a_run_that_goes_on_is_the_uninterrupted_one(kind, schedule, tmp_path):
    given = {"annealing": Annealing()} if schedule == "annealing" else {"lr_scheduler": partial(StepLR, step_size=1)}
    given |= {"head": with_dropout}
    whole, watching = module(kind, **given), Saves(tmp_path, after=(4, 11, 12))
    ran = fit(whole, clouds(), max_epochs=3, callbacks=[watching])
    assert len(watching.seen) == 3 * BATCHES
    for done in watching.after:
        again, watched = module(kind, **given), Saves()
        with torch.no_grad():
            for value in again.parameters():
                value.zero_()
        running = trainer(max_epochs=3, callbacks=[watched])
        running.fit(again, datamodule=clouds(), ckpt_path=tmp_path / f"{done}.ckpt")
        assert watched.seen == watching.seen[done:]
        assert watched.rates == watching.rates[done:]
        assert same(whole, again)
        for one, two in zip(ran.optimizers, running.optimizers, strict=True):
            for mine, other in zip(one.state.values(), two.state.values(), strict=True):
                assert all(torch.equal(torch.as_tensor(mine[key]), torch.as_tensor(other[key])) for key in mine)


# ---- progress, λ and rates


@pytest.mark.grid(3)
@every
@pytest.mark.parametrize(
    "limits",
    [
        {"max_epochs": 2},
        {"max_epochs": -1, "max_steps": 7},
        {"max_epochs": 2, "max_steps": 9},
        {"max_epochs": 2, "limit_train_batches": 5, "accumulate_grad_batches": 2},
    ],
)
def test_progress_counts_the_batches_of_the_whole_run(kind, limits):
    if issubclass(kind, AlternatingModule) and ("max_steps" in limits or "accumulate_grad_batches" in limits):
        pytest.skip("refused, see below")
    total = limits.get("max_steps") or 2 * limits.get("limit_train_batches", BATCHES)
    watching, method = Saves(), module(kind)
    assert method.progress == 1.0
    fit(method, clouds(), callbacks=[watching], **limits)
    assert watching.seen == pytest.approx([k / total for k in range(total)])
    assert copy.deepcopy(method).progress == 1.0


@every
def test_a_run_without_end_is_refused(kind):
    with pytest.raises(UserError, match="needs an end"):
        fit(module(kind), clouds(), max_epochs=-1)


def test_ramp_and_annealing_are_those_of_the_paper():
    for p in (0.0, 0.1, 0.5, 1.0):
        assert Ramp().at(p) == pytest.approx(2 / (1 + math.exp(-10 * p)) - 1)
        assert Annealing().factor(p) == pytest.approx((1 + 10 * p) ** -0.75)
    assert Ramp().at(0.0) == 0
    with pytest.raises(UserError, match="beta must be 0 or more"):
        Annealing(beta=-1)


@pytest.mark.grid(3)
@every
def test_the_annealing_follows_the_progress(kind):
    watching = Saves()
    fit(module(kind, annealing=Annealing(alpha=3, beta=0.5)), clouds(), max_epochs=2, callbacks=[watching])
    for k, rates in enumerate(watching.rates):
        assert rates == pytest.approx([0.01 * (1 + 3 * k / 12) ** -0.5] * len(rates))
    assert k == 11


@pytest.mark.grid(3)
@every
def test_schedulers_of_epochs_step_with_the_epochs(kind):
    watching = Saves()
    method = module(kind, lr_scheduler=partial(StepLR, step_size=1, gamma=0.5))
    fit(method, clouds(), max_epochs=3, callbacks=[watching])
    for k, rates in enumerate(watching.rates):
        assert rates == pytest.approx([0.01 * 0.5 ** (k // BATCHES)] * len(rates))


def test_two_schedules_of_the_rate_are_refused():
    with pytest.raises(UserError, match="annealing and lr_scheduler both set the learning rate"):
        module(DANNModule, annealing=Annealing(), lr_scheduler=partial(StepLR, step_size=1))


# ---- twins


@pytest.mark.grid(3)
@every
def test_a_copy_is_equal_and_independent(kind):
    method = module(kind)
    fit(method, clouds(), max_epochs=1)
    twin = copy.deepcopy(method)
    assert same(method, twin)
    with torch.no_grad():
        next(twin.parameters()).add_(1)
    assert not same(method, twin)


@pytest.mark.grid(3)
@every
def test_restarted_is_drawn_by_the_seed_alone(kind):
    method = module(kind)
    fresh = method.restarted(3)
    fit(method, clouds(), max_epochs=1)
    before, state = copy.deepcopy(method.state_dict()), torch.get_rng_state()
    twins = method.restarted(3), method.restarted(3), method.restarted(4)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())
    assert same(twins[0], twins[1])
    weights = [name for name, value in method.named_parameters() if value.dim() > 1]
    assert weights
    for name in weights:
        one, other, start = (twin.state_dict()[name] for twin in (twins[0], twins[2], fresh))
        assert not torch.equal(one, other), name
        assert not torch.equal(one, before[name]), name
        assert torch.equal(one, start), name
    assert twins[0]._trainer is None


@pytest.mark.grid(3)
@every
def test_restarted_runs_are_equal_for_equal_seeds(kind):
    method, found = module(kind), []
    for _ in range(2):
        twin = method.restarted(5)
        fit(twin, clouds(), max_epochs=1)
        found.append(twin)
    assert same(*found)


@pytest.mark.grid(3)
@adapting
@pytest.mark.parametrize("trained", [False, True])
def test_after_take_over_it_answers_as_the_twin(kind, trained):
    method = module(kind)
    twin = method.unadapted()
    assert isinstance(twin, SourceOnlyModule)
    x = torch.randn(20, 3)
    assert torch.equal(twin.eval()(x), method.eval()(x))
    fit(twin.train(), clouds(), max_epochs=1)
    if trained:
        fit(method.train(), clouds(), max_epochs=1)
    assert not torch.equal(twin.eval()(x), method.eval()(x))
    method.take_over(twin)
    assert torch.equal(twin(x), method(x))
    assert torch.equal(twin.head(twin.encode(x, "source")), method.head(method.encode(x, "source")))


@adapting
def test_the_twin_is_untouched_by_the_method(kind):
    method = module(kind)
    twin = method.unadapted()
    before = copy.deepcopy(twin.state_dict())
    fit(method, clouds(), max_epochs=1)
    assert all(torch.equal(value, before[name]) for name, value in twin.state_dict().items())
    assert twin.optimizer is method.optimizer


@pytest.mark.grid(3)
@every
def test_checkpoints_load_with_the_same_answers(kind, tmp_path):
    method = module(kind, head=PerceptronHead)
    fit(method, clouds(), max_epochs=2).save_checkpoint(tmp_path / "last.ckpt")
    again = kind.load_from_checkpoint(tmp_path / "last.ckpt")
    x = torch.randn(10, 3)
    assert torch.equal(method.eval()(x), again.eval()(x))
    assert same(method, again)


# ---- evaluation


@pytest.mark.grid(3)
@every
def test_evaluation_changes_nothing_and_logs_what_it_should(kind):
    method, data = module(kind), clouds()
    running = fit(method, data, max_epochs=1)
    before = copy.deepcopy(method.state_dict())
    found = running.validate(method, datamodule=data, verbose=False)[0]
    best = before.pop("best_source_accuracy")
    assert best > 0
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items() if name in before)
    known = {
        "val/source_accuracy", "val/selection", "val/entropy", "val/information_maximization",
        "val/soft_neighborhood_density", "val/importance_weighted_error", "val/deep_embedded_validation",
        "oracle/accuracy", "oracle/accuracy_ci95",
    }  # fmt: skip
    assert known <= found.keys()
    assert found["val/selection"] == pytest.approx(found["val/information_maximization"])
    evidence = method.evaluation.last_evidence()
    assert evidence.source_features.shape == (48, 16)
    assert evidence.target_logits.shape == (48, CLASSES)
    tested = running.test(method, datamodule=data, verbose=False)[0]
    x, y = (torch.cat([part[place] for loader in data.test_dataloader() for part in loader]) for place in (0, 1))
    assert tested["test/accuracy"] == pytest.approx(float((method.eval()(x).argmax(-1) == y).float().mean()))


def test_the_oracle_is_the_accuracy_on_the_targets_validation_samples():
    method, data = module(DANNModule), clouds()
    running = fit(method, data, max_epochs=1)
    found = running.validate(method, datamodule=data, verbose=False)[0]
    x = torch.cat([part.x for part in data.val_dataloader()[1]])
    right = (method.eval()(x).argmax(-1) == data.oracle_labels("val")).double()
    assert found["oracle/accuracy"] == pytest.approx(float(right.mean()))
    low, high = wilson(float(right.mean()), len(right))
    assert found["oracle/accuracy_ci95"] == pytest.approx((high - low) / 2)
    blind = running.validate(method, datamodule=clouds(oracle="none"), verbose=False)[0]
    assert not [name for name in blind if name.startswith("oracle")]


def test_a_diverged_validation_is_no_accuracy_and_forgotten():
    method, data = module(DANNModule), clouds()
    running = fit(method, data, max_epochs=1)
    best = method.best_source_accuracy.clone()
    broken = copy.deepcopy(method)
    for parameter in broken.parameters():
        parameter.data.fill_(math.nan)
    found = running.validate(broken, datamodule=data, verbose=False)[0]
    assert all(math.isnan(found[name]) for name in ("val/source_accuracy", "oracle/accuracy", "val/entropy"))
    assert math.isfinite(found["val/selection"]), "EarlyStopping takes NaN and infinity for a failure of the run"
    assert broken.best_source_accuracy == best > 0


def test_states_below_the_floor_of_the_source_are_never_chosen():
    method, data = module(DANNModule, validator=Entropy(source_floor=0.9)), clouds()
    running = fit(method, data, max_epochs=5)
    assert running.validate(method, datamodule=data, verbose=False)[0]["val/selection"] > -math.inf
    with torch.no_grad():
        for value in method.head.parameters():
            value.zero_()
    found = running.validate(method, datamodule=data, verbose=False)[0]
    assert found["val/selection"] == -1e9
    assert found["val/entropy"] == pytest.approx(math.log(CLASSES))


def test_outputs_that_are_no_numbers_are_never_chosen():
    method, data = module(DANNModule), clouds()
    running = fit(method, data, max_epochs=1)
    with torch.no_grad():
        next(method.head.parameters()).fill_(torch.nan)
    found = running.validate(method, datamodule=data, verbose=False)[0]
    assert found["val/selection"] < -1e8  # finite, since EarlyStopping takes an infinite score for a failure
    assert math.isnan(found["val/entropy"])


def test_several_targets_are_reported_apart():
    data = clouds(targets={
        "near": Clouds(draw=3, val_fraction=0.2, test_fraction=0.4),
        "far": Clouds(shortcut=False, draw=2, val_fraction=0.2, test_fraction=0.2),
    })  # fmt: skip
    method = module(DANNModule)
    running = fit(method, data, max_epochs=2)
    found = {
        name: value
        for numbers in running.test(method, datamodule=data, verbose=False)
        for name, value in numbers.items()
    }
    near, far = found["test/near/accuracy"], found["test/far/accuracy"]
    assert near != far
    assert found["test/accuracy"] == pytest.approx((96 * near + 48 * far) / 144)


# ---- refusals


@every
@pytest.mark.parametrize("watching", [ModelCheckpoint(monitor="oracle/accuracy"), EarlyStopping("oracle/accuracy")])
def test_what_sees_labels_of_the_target_selects_nothing(kind, watching, tmp_path):
    settings = {"callbacks": [watching], "enable_checkpointing": True, "default_root_dir": tmp_path}
    with pytest.raises(UserError, match=f"{type(watching).__name__} monitors oracle/accuracy, which looks at labels"):
        fit(module(kind), clouds(), **settings)


def test_unless_it_is_asked_for_by_name(tmp_path):
    best = ModelCheckpoint(tmp_path, monitor="oracle/accuracy")
    data = clouds(oracle="select")
    running = trainer(callbacks=[best], enable_checkpointing=True, max_epochs=1)
    running.fit(module(DANNModule), datamodule=data)
    assert best.best_model_path


@every
def test_samples_that_do_not_fit_are_refused(kind):
    method = module(kind)
    small = batch()
    with pytest.raises(UserError, match=f"{kind.__name__} learns from pairs .* serves LabelledBatch"):
        method.training_step(LabelledBatch(small.source_x, small.source_y), 0)
    with pytest.raises(UserError, match=r"source have shape \(3,\), those of the target \(4,\)"):
        method.training_step(small._replace(target_x=torch.randn(5, 4)), 0)
    with pytest.raises(UserError, match=r"built for samples of shape \(3,\)"):
        method.training_step(small._replace(source_x=torch.randn(6, 4), target_x=torch.randn(5, 4)), 0)
    with pytest.raises(UserError, match="NaN or infinite"):
        method.training_step(small._replace(target_x=small.target_x * torch.nan), 0)
    with pytest.raises(UserError, match="labels"):
        method.training_step(small._replace(source_y=small.source_y + 1), 0)


@every
def test_data_without_domains_is_refused(kind):
    with pytest.raises(UserError, match=f"{kind.__name__} adapts to a target domain: give it a DomainDataModule"):
        fit(module(kind), Clouds(batch_size=8))


@every
def test_the_number_of_classes_is_asked_for(kind):
    with pytest.raises(UserError, match="needs num_classes"):
        kind(module(kind).backbone if kind is not AdaBNModule else module(SourceOnlyModule).backbone)


# ---- normalisation


@pytest.mark.parametrize("normalization", ["joint", "separate", "domain_specific"])
def test_what_the_statistics_are_taken_over(normalization):
    method, given = module(DANNModule, normalization=normalization).double().train(), batch(dtype=torch.float64)
    first = method.backbone.layers[1]
    source, target = (first(x) for x in (given.source_x, given.target_x))
    method.encode_pair(given)
    found = norms(method.backbone)
    momentum = 0.1
    if normalization == "joint":
        expected = [momentum * torch.cat([source, target]).mean(0)]
    elif normalization == "separate":
        expected = [(1 - momentum) * momentum * source.mean(0) + momentum * target.mean(0)]
    else:
        expected = [momentum * source.mean(0), momentum * target.mean(0)]
    for norm, mean in zip(found, expected, strict=False):
        torch.testing.assert_close(norm.running_mean, mean)
    assert len(found) == (4 if normalization == "domain_specific" else 2)


@pytest.mark.parametrize("normalization", ["joint", "separate", "domain_specific"])
def test_a_run_under_each_normalisation(normalization):
    method = module(DANNModule, normalization=normalization)
    fit(method, clouds(), max_epochs=1)
    assert method.protocol()["normalization"] == normalization
    x = torch.randn(6, 3)
    equal = torch.equal(method.eval().encode(x, "source"), method.encode(x, "target"))
    assert equal == (normalization != "domain_specific")


def test_unknown_normalisations_are_refused():
    with pytest.raises(UserError, match=r"normalization must be one of .* Did you mean separate\?"):
        module(DANNModule, normalization="seperate")
    with pytest.raises(UserError, match="MLP has no BatchNorm layer"):
        module(DANNModule, norm=False, normalization="domain_specific")


# ---- what is logged


def test_the_ratio_of_the_gradients_is_that_of_both_losses(tmp_path):
    method = module(DANNModule, norm=False).double()
    given, logged = batch(dtype=torch.float64), {}
    running = trainer(log_every_n_steps=1)
    method._trainer = running
    running.strategy.connect(method)
    method.log = lambda name, value, **_: logged.update({name: float(value)})
    method.log_dict = lambda numbers, **_: logged.update(numbers)
    method.training_loss(given)
    source, target = (method.encode(x, side).detach().requires_grad_() for x, side in
                      ((given.source_x, "source"), (given.target_x, "target")))  # fmt: skip
    label = F.cross_entropy(method.head(source), given.source_y)
    mine, other = method.discriminator(source), method.discriminator(target)
    domain = (F.softplus(-mine).mean() + F.softplus(other).mean()) / 2
    (of_label,) = torch.autograd.grad(label, source)
    of_domain = torch.cat(torch.autograd.grad(domain, [source, target]))
    strength = Ramp().at(1.0)
    assert logged["train/gradient_ratio"] == pytest.approx(strength * float(of_domain.norm() / of_label.norm()))
    assert logged["train/transfer_loss"] == pytest.approx(float(domain.detach()))


# ---- alternating methods


alternating = pytest.mark.parametrize("kind", [MCDModule, ADDAModule])


@alternating
@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"gradient_clip_val": 0.5}, r"does not support trainer.gradient_clip_val=0.5: leave it out"),
        ({"accumulate_grad_batches": 2}, r"does not support trainer.accumulate_grad_batches=2: leave it out"),
        ({"max_epochs": -1, "max_steps": 9}, "set trainer.max_epochs"),
    ],
)
def test_settings_of_one_optimiser_are_refused(kind, setting, words):
    with pytest.raises(UserError, match=words):
        fit(module(kind), clouds(), **setting)


@alternating
def test_they_do_not_matter_in_a_test(kind):
    method, data = module(kind), clouds()
    fit(method, data, max_epochs=1)
    assert trainer(gradient_clip_val=0.5).test(method, datamodule=data, verbose=False)


@alternating
def test_schedulers_that_wait_for_a_metric_are_refused(kind):
    plateau = partial(torch.optim.lr_scheduler.ReduceLROnPlateau, patience=1)
    with pytest.raises(UserError, match="use another scheduler than ReduceLROnPlateau"):
        fit(module(kind, lr_scheduler=plateau), clouds())


@alternating
def test_networks_without_anything_to_train_are_refused(kind):
    method = module(kind)
    method.backbone.requires_grad_(False)
    with pytest.raises(UserError, match=f"{kind.__name__} trains its backbone, but all its parameters are frozen"):
        fit(method, clouds())


@alternating
def test_they_run_in_half_precision(kind):
    method = module(kind)
    before = copy.deepcopy(dict(method.named_parameters()))
    fit(method, clouds(), max_epochs=2, precision="bf16-mixed")
    for name, parameter in method.named_parameters():
        assert parameter.dtype == torch.float32
        assert parameter.isfinite().all()
        assert "bias" in name or not torch.equal(parameter, before[name]), name


def test_predictions_are_of_the_target():
    samples = DomainSamples(*(torch.zeros(2),) * 4)
    assert samples._fields == ("x", "y", "number", "domain")
    method = module(AdaBNModule).eval()
    norms(method.backbone)[1].running_mean.fill_(5)  # the target's of the first layer
    x = torch.randn(4, 3)
    assert torch.equal(method(x), method.head(method.encode(x, "target")))
    assert not torch.equal(method(x), method.head(method.encode(x, "source")))
