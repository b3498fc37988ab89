"""The diagnostics of an adaptation: distances, curves and warnings, none of which sees a label of the target."""

from __future__ import annotations

import json
import math
import warnings
from functools import partial

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image

from metatransfer import MLP, Arrays, BestCheckpoint, Figures, LabelledDataModule, OnTarget, Report, UserError
from metatransfer.callbacks import domain_diagnostics
from metatransfer.callbacks.adaptation_gain import AdaptationGain
from metatransfer.callbacks.domain_diagnostics import DomainDiagnostics, distances
from metatransfer.callbacks.run.display import print_report
from metatransfer.data import DomainDataModule
from metatransfer.functional.domain.distance import class_conditional_a_distance, proxy_a_distance
from metatransfer.methods.domain import DANNModule, SourceOnlyModule

CLASSES = 3


def data(folder, labels=None, targets=1, **arguments):
    """Clouds in two places; ``labels`` makes others of the targets'."""
    rng = np.random.default_rng(0)
    names = ["source", *(f"target{number}" for number in range(targets))]
    for place, name in enumerate(names):
        y = np.arange(150) % CLASSES
        x = 3 * np.eye(CLASSES, 4)[y] + 0.6 * rng.normal(size=(150, 4)) + 0.8 * place
        if place and labels is not None:
            y = labels(y)
        np.savez(folder / f"{name}.npz", x=x.astype(np.float32), y=y)
    modules = {name: LabelledDataModule(Arrays(str(folder / f"{name}.npz"))) for name in names}
    return DomainDataModule({"source": modules.pop("source")}, modules, batch_size=16, **arguments)


def module(kind=DANNModule, lr=0.01, **arguments):
    torch.manual_seed(0)
    return kind(MLP((4,), (8, 8)), CLASSES, optimizer=partial(torch.optim.Adam, lr=lr), **arguments)


def trainer(folder, *callbacks, **arguments):
    settings = {
        "logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu",
        "max_epochs": 2, "enable_checkpointing": any(isinstance(one, BestCheckpoint) for one in callbacks),
        "num_sanity_val_steps": 0, "log_every_n_steps": 1,
    }  # fmt: skip
    return pl.Trainer(default_root_dir=folder, callbacks=list(callbacks), **(settings | arguments))


def written(folder, name="domain_diagnostics"):
    return json.loads(next(folder.rglob(f"{name}.json")).read_text())


def distance_of(evidence):
    return proxy_a_distance(evidence.source_features.double(), evidence.target_features.double())


# ---- distances


def test_distances_are_those_of_the_validation_features(tmp_path):
    method = module()
    trainer(tmp_path, DomainDiagnostics()).fit(method, datamodule=data(tmp_path))
    found, evidence = written(tmp_path), method.evaluation.last_evidence()
    assert found["after"]["proxy_a_distance"] == pytest.approx(distance_of(evidence))
    by_class = class_conditional_a_distance(
        evidence.source_features.double(), evidence.source_labels, evidence.target_features.double(),
        evidence.target_logits.argmax(-1), CLASSES,
    )  # fmt: skip
    assert found["after"]["class_conditional_a_distance"] == by_class._asdict()
    untrained = module()
    trainer(None).validate(untrained, datamodule=data(tmp_path), verbose=False)
    assert found["before"]["network"] == "before training"
    assert found["before"]["proxy_a_distance"] == pytest.approx(distance_of(untrained.evaluation.last_evidence()))


def test_before_is_the_twin_where_there_is_one(tmp_path):
    gain = AdaptationGain()
    trainer(tmp_path, gain, DomainDiagnostics()).fit(module(), datamodule=data(tmp_path))
    found = written(tmp_path)["before"]
    assert found["network"] == "source only"
    trainer(None).validate(gain.twin, datamodule=data(tmp_path), verbose=False)
    assert found["proxy_a_distance"] == pytest.approx(distance_of(gain.twin.evaluation.last_evidence()))


def test_what_cannot_be_measured_is_no_number(tmp_path):
    method = module()
    trainer(None).validate(method, datamodule=data(tmp_path), verbose=False)
    evidence = method.evaluation.last_evidence()
    none = {"proxy_a_distance": None, "class_conditional_a_distance": None}
    assert distances(evidence._replace(target_features=evidence.target_features[:4]), CLASSES) == none
    assert distances(evidence._replace(source_features=evidence.source_features * math.nan), CLASSES) == none
    assert distances(evidence, CLASSES) != none


def test_without_a_validation_the_curves_are_all(tmp_path):
    trainer(tmp_path, DomainDiagnostics(), limit_val_batches=0).fit(module(), datamodule=data(tmp_path))
    found = written(tmp_path)
    assert set(found) == {"signs", "curves"}
    assert (next(tmp_path.rglob("domain_curves.png"))).exists()
    assert not list(tmp_path.rglob("domains.png"))


# ---- curves


class Noted(pl.Callback):
    """What the method logged, batch by batch."""

    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, *args):
        known = {name: value for name, value in trainer.callback_metrics.items() if name.startswith("train/")}
        self.values.append({name: float(value) for name, value in known.items()})


def test_curves_are_what_was_logged(tmp_path):
    noted = Noted()
    trainer(tmp_path, DomainDiagnostics(), noted).fit(module(), datamodule=data(tmp_path))
    curves = written(tmp_path)["curves"]
    assert curves["step"] == list(range(len(noted.values)))
    for name in ("lambda", "discriminator_accuracy", "gradient_ratio"):
        assert curves[name] == [one[f"train/{name}"] for one in noted.values]
    assert curves["lambda"] == sorted(curves["lambda"])
    assert len(set(curves["gradient_ratio"])) > 5


def test_long_curves_are_thinned(tmp_path, monkeypatch):
    monkeypatch.setattr(domain_diagnostics, "_POINTS", 8)
    trainer(tmp_path, DomainDiagnostics(), max_epochs=5).fit(module(), datamodule=data(tmp_path))
    curves = written(tmp_path)["curves"]
    assert 4 <= len(curves["step"]) <= 8
    assert {len(values) for values in curves.values()} == {len(curves["step"])}
    assert len(set(np.diff(curves["step"]).tolist())) == 1, "evenly spaced over the run"
    assert curves["step"][-1] >= 20


def test_a_resumed_run_keeps_its_past(tmp_path):
    for name in ("whole", "on"):
        (tmp_path / name).mkdir()
    trainer(tmp_path / "whole", DomainDiagnostics(), BestCheckpoint(save_top_k=-1)).fit(
        module(), datamodule=data(tmp_path)
    )
    first = min((tmp_path / "whole").rglob("epoch=0*.ckpt"))
    resumed = trainer(tmp_path / "on", DomainDiagnostics(), BestCheckpoint(save_top_k=-1))
    resumed.fit(module(), datamodule=data(tmp_path), ckpt_path=str(first))
    one, two = (written(tmp_path / name) for name in ("whole", "on"))
    assert one["curves"] == two["curves"]
    assert one["after"] == two["after"]
    assert "before" in one
    assert "before" not in two


def test_a_method_without_an_adversary_has_no_curves(tmp_path):
    trainer(tmp_path, DomainDiagnostics()).fit(module(SourceOnlyModule), datamodule=data(tmp_path))
    assert written(tmp_path)["curves"]["step"] == []
    assert not list(tmp_path.rglob("domain_curves.png"))
    assert (next(tmp_path.rglob("domains.png"))).exists()


# ---- warnings


class Collapsing(DANNModule):
    """Sends all samples to one place."""

    def transfer_loss(self, pair):
        super().transfer_loss(pair)
        return -5 * pair.target_logits.log_softmax(-1)[:, 0].mean()


def test_a_collapse_is_told_once_with_a_remedy(tmp_path):
    run = trainer(tmp_path, DomainDiagnostics(), max_epochs=4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.fit(module(Collapsing, lr=0.05), datamodule=data(tmp_path))
    found = written(tmp_path)["signs"]
    assert "concentrated" in found
    told = [str(one.message) for one in caught if "collapsed to 1 of 3 classes" in str(one.message)]
    assert len(told) == 1
    assert "lower max_lambda" in told[0]
    assert told[0] == f"Epoch {found['concentrated']['epoch']}: {found['concentrated']['sentence']}"


def test_a_sound_run_is_not_warned_of(tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(tmp_path, DomainDiagnostics(), max_epochs=4).fit(module(), datamodule=data(tmp_path))
    assert written(tmp_path)["signs"] == {}
    assert not [one for one in caught if str(one.message).startswith("Epoch")]


# ---- pictures


@pytest.mark.grid(3)
@pytest.mark.parametrize("pictures", ["pca", "tsne", "none"])
def test_pictures(tmp_path, pictures):
    trainer(tmp_path, DomainDiagnostics(pictures), Figures(), Report()).fit(module(), datamodule=data(tmp_path))
    names = {path.stem for path in tmp_path.rglob("*.png")}
    assert names == {"domain_curves", "learning_curve"} | ({"domains"} if pictures != "none" else set())
    for path in tmp_path.rglob("*.png"):
        assert np.asarray(Image.open(path).convert("L")).std() > 5, "an empty picture"


def test_wrong_arguments():
    with pytest.raises(UserError, match="pictures must be one of pca, tsne, none, but is 'umap'"):
        DomainDiagnostics("umap")


def test_other_methods_and_fast_runs_are_left_alone(tmp_path):
    trainer(tmp_path, DomainDiagnostics(), fast_dev_run=True).fit(module(), datamodule=data(tmp_path))
    trainer(tmp_path, DomainDiagnostics()).test(module(), datamodule=data(tmp_path), verbose=False)
    assert not list(tmp_path.rglob("domain_diagnostics.json"))


# ---- what labels of the target may not reach


def plain(value):
    """A checkpoint's content as plain values, without times and places."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.reshape(-1).double().nan_to_num(-77).tolist()
    if isinstance(value, dict):
        left_out = {"seconds", "dirpath", "best_model_path", "last_model_path", "kth_best_model_path", "best_k_models"}
        return {key: plain(item) for key, item in value.items() if key not in left_out}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def test_no_bit_of_a_checkpoint_depends_on_labels_of_the_target(tmp_path):
    found = []
    for number, labels in enumerate((None, lambda y: (y + np.arange(150) // 3) % CLASSES)):
        folder = tmp_path / str(number)
        folder.mkdir()
        callbacks = [AdaptationGain(fallback=True), DomainDiagnostics(), Report(), BestCheckpoint(save_top_k=-1)]
        pl.seed_everything(0, verbose=False)
        trainer(folder, *callbacks).fit(module(), datamodule=data(folder, labels))
        checkpoints = {path.name: plain(torch.load(path, weights_only=True)) for path in sorted(folder.rglob("*.ckpt"))}
        report = written(folder, "results")
        diagnostics = written(folder)
        found.append((checkpoints, report["history"], report["metrics"], diagnostics, report.pop("oracle")))
    one, two = found
    assert len(one[0]) >= 3
    assert one[:4] == two[:4]
    assert one[4] != two[4], "labels that differ, and no number that does"
    assert "oracle/" not in str(one[0])


# ---- the report of such runs


def test_the_report_keeps_the_oracle_apart(tmp_path, capsys):
    method, domains, report = module(), data(tmp_path), Report()
    trainer(tmp_path, report, BestCheckpoint(), max_epochs=3).fit(method, datamodule=domains)
    found = written(tmp_path, "results")
    assert not [name for name in found["metrics"] if "oracle" in name]
    assert found["protocol"]["selection"] == "max val/selection"
    assert (found["samples"], found["source_samples"]) == (15, 15)
    best = max(found["history"], key=lambda entry: entry["metrics"]["selection"]["value"])
    assert found["metrics"] == best["metrics"]
    chosen = DANNModule.load_from_checkpoint(tmp_path / found["checkpoint"])
    run = trainer(None)
    run.validate(chosen, datamodule=data(tmp_path), verbose=False)
    told = found["oracle"]
    assert told["accuracy"]["value"] == pytest.approx(float(run.callback_metrics["oracle/accuracy"]))
    assert told["validations"] == 3
    assert told["best_accuracy"] >= told["accuracy"]["value"]
    assert told["gap"] == pytest.approx(100 * (told["best_accuracy"] - told["accuracy"]["value"]))
    assert told["selected_by"] == found["protocol"]["method"]["train_selection"]
    capsys.readouterr()
    print_report(found, tmp_path, OnTarget(3))
    shown = " ".join(capsys.readouterr().out.split())
    parts = ["15 val of the target, 15 of the source", "trained on source (105) with labels and target0 (105)"]
    parts += ["labels of the target, for the report only", "selection gap", "selected on these samples"]
    assert not [part for part in parts if part not in shown]


def test_without_labels_nothing_is_said_of_an_oracle(tmp_path):
    trainer(tmp_path, Report()).fit(module(), datamodule=data(tmp_path, oracle="none"))
    assert "oracle" not in written(tmp_path, "results")


def test_selected_by_the_oracle_the_gap_is_none_at_all(tmp_path):
    run = trainer(tmp_path, Report(), BestCheckpoint("oracle/accuracy"), max_epochs=3)
    run.fit(module(), datamodule=data(tmp_path, oracle="select"))
    told = written(tmp_path, "results")["oracle"]
    assert told["selected_by"] == "max oracle/accuracy"
    assert told["gap"] == 0
    assert float(run.checkpoint_callback.best_model_score) == pytest.approx(told["best_accuracy"])


def test_baselines_of_each_target(tmp_path):
    domains = data(tmp_path, targets=2)
    trainer(tmp_path, Report()).test(module(), datamodule=domains, verbose=False)
    found = written(tmp_path, "results")
    assert found["samples"] == 60
    source = torch.cat([part.x for part in data(tmp_path, targets=2).source_samples()])
    labels = torch.cat([part.y for part in data(tmp_path, targets=2).source_samples()])
    rights = []
    for name, loader in zip(domains.targets, data(tmp_path, targets=2).test_dataloader(), strict=True):
        x, y = (torch.cat(parts) for parts in zip(*((part.x, part.y) for part in loader), strict=True))
        rights.append((labels[torch.cdist(x, source).argmin(1)] == y).double())
        numbers = found["baselines"]["source 1-NN"]
        assert numbers[f"{name}/accuracy"]["value"] == pytest.approx(float(rights[-1].mean()))
    assert numbers["accuracy"]["value"] == pytest.approx(float(torch.cat(rights).mean()))


# ---- what chooses the best checkpoint


@pytest.mark.parametrize(
    ("monitor", "mode"),
    [("val/selection", "max"), ("val/entropy", "min"), ("val/information_maximization", "max"),
     ("val/source_accuracy", "max"), ("val/loss", "min"), ("oracle/accuracy", "max")],
)  # fmt: skip
def test_the_mode_follows_the_metric(monitor, mode):
    assert OnTarget(3).mode_of(monitor) == mode


def test_the_method_names_what_chooses(tmp_path):
    chooser = BestCheckpoint()
    trainer(tmp_path, chooser).fit(module(), datamodule=data(tmp_path))
    assert (chooser.monitor, chooser.mode) == ("val/selection", "max")
    assert chooser.best_model_score is not None
    trainer(None, chooser).validate(module(), datamodule=data(tmp_path), verbose=False)
    assert BestCheckpoint().monitor == "auto"


def test_labels_of_the_target_choose_only_where_they_may(tmp_path):
    with pytest.raises(UserError, match="BestCheckpoint monitors oracle/accuracy, which looks at labels of the target"):
        trainer(tmp_path, BestCheckpoint("oracle/accuracy")).fit(module(), datamodule=data(tmp_path))
