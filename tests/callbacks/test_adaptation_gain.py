"""What adaptation is worth: equal twins, no label of the target where it has no say, and a fallback that works."""

from __future__ import annotations

import copy
import json
import signal
from functools import partial

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image

from metatransfer import MLP, Arrays, BestCheckpoint, FineTuneModule, LabelledDataModule, Report, UserError
from metatransfer.callbacks.adaptation_gain import FALLBACK, AdaptationGain, chosen_state, loaded
from metatransfer.callbacks.run.checkpoint import card_path
from metatransfer.cli import main
from metatransfer.data import DomainDataModule
from metatransfer.experiments.comparing import measure_twins
from metatransfer.experiments.intervals import Interval, verdict
from metatransfer.experiments.training import Budget
from metatransfer.methods.domain import AdaBNModule, DANNModule, MCDModule, SourceOnlyModule
from metatransfer.methods.twins import ADAPTATION
from metatransfer.metrics.validators import panel_verdict
from metatransfer.nn.blocks.domain_norm import DomainBatchNorm

CLASSES = 3
BUDGET = Budget(2, settings={"accelerator": "cpu"})


def blobs(count, shift, angle, seed):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    turn = 2 * np.pi * labels / CLASSES + angle
    x = 3 * np.stack([np.cos(turn), np.sin(turn)], 1) + 0.7 * rng.normal(size=(count, 2)) + shift
    return x.astype(np.float32), labels


def data(folder, labels=None, size=120, **arguments):
    """Three clouds, in the target shifted and turned; ``labels`` makes others of the target's."""
    for name, given in (("source", (120, 0.0, 0.0, 0)), ("target", (size, 1.0, 0.6, 1))):
        x, y = blobs(*given)
        arrays = {"x": x} if name == "target" and labels == "none" else {"x": x, "y": y}
        if name == "target" and callable(labels):
            arrays["y"] = labels(y)
        np.savez(folder / f"{name}.npz", **arrays)
    sides = {name: {name[0]: LabelledDataModule(Arrays(str(folder / f"{name}.npz")))} for name in ("source", "target")}
    return DomainDataModule(sides["source"], sides["target"], batch_size=16, **arguments)


def module(kind=DANNModule, seed=0, lr=0.01, norm=False, **arguments):
    torch.manual_seed(seed)
    return kind(MLP((2,), (8, 8), norm=norm), CLASSES, optimizer=partial(torch.optim.Adam, lr=lr), **arguments)


def trainer(folder, *callbacks, **arguments):
    settings = {
        "logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu",
        "max_epochs": 2, "enable_checkpointing": any(isinstance(one, BestCheckpoint) for one in callbacks),
        "num_sanity_val_steps": 0, "log_every_n_steps": 1,
    }  # fmt: skip
    return pl.Trainer(default_root_dir=folder, callbacks=list(callbacks), **(settings | arguments))


def written(folder):
    return json.loads(next(folder.rglob("adaptation_gain.json")).read_text())


def by_hand(learner, served, tested, seed=0, **arguments):
    """Trained with a plain Trainer and tested with its last weights."""
    pl.seed_everything(seed, verbose=False)
    trainer(None, limit_val_batches=0, **arguments).fit(learner, datamodule=served)
    return trainer(None).test(learner, datamodule=tested, verbose=False)[0]["test/accuracy"]


# ---- the measurement


def test_scores_are_those_of_trainings_by_hand(tmp_path):
    """Own twins: each starts from the weights of the run and has its budget."""
    method, domains = module(), data(tmp_path)
    start = copy.deepcopy(method)
    run = trainer(tmp_path, AdaptationGain(), BestCheckpoint())
    pl.seed_everything(5, verbose=False)
    run.fit(method, datamodule=domains)
    found = written(tmp_path)
    last = trainer(None).test(copy.deepcopy(method), datamodule=data(tmp_path), verbose=False)[0]["test/accuracy"]
    chosen = DANNModule.load_from_checkpoint(run.checkpoint_callback.best_model_path)
    selected = trainer(None).test(chosen, datamodule=data(tmp_path), verbose=False)[0]["test/accuracy"]
    twin = by_hand(start.unadapted(), data(tmp_path), data(tmp_path))
    oracle = by_hand(start.unadapted(), data(tmp_path).oracle_twin(), data(tmp_path))
    scores = {name: one["values"] for name, one in found["accuracy"].items()}
    assert scores == {
        "adapted": [pytest.approx(last)],
        "source only": [pytest.approx(twin)],
        "target-trained": [pytest.approx(oracle)],
    }
    assert found["selected_accuracy"] == pytest.approx(selected)
    assert found["gain"]["values"] == [pytest.approx(last - twin)]
    assert found["verdict"] == verdict(Interval.of([scores["adapted"][0] - scores["source only"][0]]), ADAPTATION, 24)
    assert len({last, twin, oracle}) > 1, "nothing to tell apart"


def test_the_run_goes_on_as_if_nothing_had_happened(tmp_path):
    states = []
    for callbacks in ([AdaptationGain()], []):
        method, domains = module(), data(tmp_path)
        run = trainer(tmp_path, *callbacks)
        pl.seed_everything(3, verbose=False)
        run.fit(method, datamodule=domains)
        states.append((copy.deepcopy(method.state_dict()), torch.get_rng_state(), np.random.get_state()[1]))
        assert method.trainer is run
        assert domains.trainer is run
        assert run.test(method, datamodule=domains, verbose=False)[0]["test/samples"] == 24
    one, two = states
    assert all(torch.equal(value, two[0][name]) for name, value in one[0].items())
    assert torch.equal(one[1], two[1])
    assert np.array_equal(one[2], two[2])


@pytest.mark.slow
def test_further_seeds_are_trained_anew(tmp_path):
    method = module()
    method.run_seed = 4
    start = copy.deepcopy(method)
    trainer(tmp_path, AdaptationGain(seeds=3)).fit(method, datamodule=data(tmp_path))
    found = written(tmp_path)
    for place, seed in ((1, 5), (2, 6)):
        again = measure_twins(start, data(tmp_path), seed=seed, budget=BUDGET).values
        assert {name: one["values"][place] for name, one in found["accuracy"].items()} == again
        twin, reseeded = start.restarted(seed), data(tmp_path).reseeded(seed)
        assert again["adapted"] == by_hand(twin, reseeded, reseeded, seed)
        plain = start.restarted(seed).unadapted()
        assert again["source only"] == by_hand(plain, reseeded, reseeded, seed)
    assert found["seeds"] == 3
    differences = [
        one - two for one, two in zip(*(found["accuracy"][name]["values"] for name in ("adapted", "source only")),
                                      strict=True)
    ]  # fmt: skip
    assert found["gain"] == Interval.of(differences, lowest=-1.0)._asdict()


def test_target_statistics_of_further_seeds_are_estimated(tmp_path):
    method = module(AdaBNModule, norm=True)
    found = measure_twins(method, data(tmp_path), seed=1, budget=BUDGET).values
    by_hand_twin, reseeded = method.restarted(1), data(tmp_path).reseeded(1)
    pl.seed_everything(1, verbose=False)
    run = trainer(None, limit_val_batches=0)
    run.fit(by_hand_twin, datamodule=reseeded)
    right = trainer(None).test(by_hand_twin, datamodule=reseeded, verbose=False)[0]["test/accuracy"]
    assert found["adapted"] == right
    layer = next(part for part in by_hand_twin.backbone.modules() if isinstance(part, DomainBatchNorm))
    assert (layer.target.running_mean != 0).any()  # as it was before the fit


def test_on_the_validation_split(tmp_path):
    method, domains = module(), data(tmp_path)
    run = trainer(tmp_path, AdaptationGain(split="val", oracle=False), limit_test_batches=0)
    run.fit(method, datamodule=domains)
    found = written(tmp_path)
    assert set(found["accuracy"]) == {"adapted", "source only"}
    assert found["accuracy"]["adapted"]["mean"] == pytest.approx(float(run.callback_metrics["oracle/accuracy"]))


def test_a_source_only_run_learns_what_labels_would_be_worth(tmp_path, capsys):
    method = module(SourceOnlyModule)
    trainer(tmp_path, AdaptationGain()).fit(method, datamodule=data(tmp_path))
    found = written(tmp_path)
    assert set(found["accuracy"]) == {"source only", "target-trained"}
    assert found["gain"] is None
    assert found["panel"] is None
    more = found["accuracy"]["target-trained"]["mean"] - found["accuracy"]["source only"]["mean"]
    assert f"would gain {100 * more:.2f} points" in found["verdict"]
    assert found["verdict"] in " ".join(capsys.readouterr().out.split())


def test_statistics_of_the_target_are_an_adaptation(tmp_path):
    trainer(tmp_path, AdaptationGain()).fit(module(AdaBNModule, norm=True), datamodule=data(tmp_path))
    assert set(written(tmp_path)["accuracy"]) == {"adapted", "source only", "target-trained"}


@pytest.mark.grid(3)
@pytest.mark.parametrize("kind", [DANNModule, MCDModule], ids=["one optimiser", "three steps for a batch"])
def test_every_twin_takes_as_many_steps_as_the_run(tmp_path, kind):
    run = trainer(tmp_path, AdaptationGain(seeds=2), max_time={"hours": 1})
    run.fit(module(kind), datamodule=data(tmp_path, size=60))
    found = written(tmp_path)["budget"]
    assert (found["max_epochs"], found["max_seconds"]) == (2, 3600)
    steps = {name: [one["steps"] for one in rows] for name, rows in found["spent"].items()}
    assert steps == {name: [10, 10] for name in ("adapted", "source only", "target-trained")}
    assert found["spent"]["target-trained"][0]["epochs"] == 5, "epochs of two batches"


class Stop(pl.Callback):
    """Ends a run after its first epoch, as early stopping does."""

    def on_train_epoch_end(self, trainer, module):
        trainer.should_stop = True


def test_twins_of_a_run_that_stopped_early_stop_as_well(tmp_path):
    trainer(tmp_path, AdaptationGain(), Stop(), max_epochs=9).fit(module(), datamodule=data(tmp_path))
    found = written(tmp_path)
    steps = {name: one[0]["steps"] for name, one in found["budget"]["spent"].items()}
    assert found["stopped_early"]
    assert steps == dict.fromkeys(("adapted", "source only", "target-trained"), 5)


# ---- without labels


@pytest.mark.parametrize("arguments", [{"labels": "none"}, {"oracle": "none"}], ids=["unlabelled", "oracle=none"])
def test_without_labels_only_the_panel_speaks(tmp_path, arguments, capsys):
    trainer(tmp_path, AdaptationGain()).fit(module(), datamodule=data(tmp_path, **arguments))
    found = written(tmp_path)
    assert found["accuracy"] == {}
    assert found["gain"] is None
    assert len(found["panel"]["votes"]) == 6
    shown = " ".join(capsys.readouterr().out.split())
    assert found["panel"]["sentence"] in shown
    assert "its labels are missing or may not be used" in shown
    assert "%" not in shown.replace(found["panel"]["sentence"], "")
    assert not list(tmp_path.rglob("adaptation_gain.png"))


def test_labels_of_the_target_do_not_move_the_panel(tmp_path):
    panels = []
    for number, labels in enumerate((None, lambda y: (y + np.arange(len(y)) // 7) % CLASSES)):
        folder = tmp_path / str(number)
        folder.mkdir()
        trainer(folder, AdaptationGain(), BestCheckpoint()).fit(module(), datamodule=data(folder, labels))
        panels.append(written(folder))
    assert panels[0]["panel"] == panels[1]["panel"]
    assert panels[0]["accuracy"] != panels[1]["accuracy"]


def test_the_panel_compares_the_chosen_state_with_the_twin(tmp_path):
    gain, method = AdaptationGain(), module()
    run = trainer(tmp_path, gain, BestCheckpoint())
    run.fit(method, datamodule=data(tmp_path))
    chosen = DANNModule.load_from_checkpoint(run.checkpoint_callback.best_model_path)
    evidence = []
    for one in (chosen, copy.deepcopy(gain.twin)):
        trainer(None).validate(one, datamodule=data(tmp_path), verbose=False)
        evidence.append(one.evaluation.last_evidence())
    found, expected = written(tmp_path)["panel"], panel_verdict(*evidence)
    assert found["hurts"] == expected.hurts
    assert found["judged"] == "the weights of the best checkpoint"
    for name, vote in expected.votes.items():
        assert found["votes"][name]["adapted"] == pytest.approx(vote.adapted)
        assert found["votes"][name]["source only"] == pytest.approx(vote.plain)
        assert found["votes"][name]["prefers"] == ("adapted" if vote.adapted_better else "source only")


def zeros(method):
    for parameter in method.parameters():
        parameter.data.zero_()
    return method


def test_the_chosen_state_is_that_of_the_best_checkpoint(tmp_path):
    method = module()
    run = trainer(tmp_path, BestCheckpoint(), AdaptationGain(seeds=0))
    run.fit(method, datamodule=data(tmp_path))
    saved = torch.load(run.checkpoint_callback.best_model_path, weights_only=True)["state_dict"]
    chosen = chosen_state(run, zeros(method))
    assert all(torch.equal(value, saved[name]) for name, value in chosen.state_dict().items())
    assert not any(parameter.any() for parameter in method.parameters()), "the method itself is left alone"
    assert chosen_state(trainer(tmp_path), method) is None


class Wiped(AdaptationGain):
    """Forgets the last weights before it compares."""

    def measure(self, trainer, module, start, budget):
        return super().measure(trainer, zeros(module), start, budget)


def test_the_panel_judges_the_chosen_state(tmp_path):
    trainer(tmp_path, Wiped(oracle=False), BestCheckpoint()).fit(module(), datamodule=data(tmp_path))
    found = written(tmp_path)
    assert found["panel"]["votes"]["entropy"]["adapted"] < 1.09, "zeros know nothing: log 3"
    assert found["selected_accuracy"] != found["accuracy"]["adapted"]["mean"]


# ---- the fallback


def test_no_fallback_where_nothing_hurts(tmp_path):
    run = trainer(tmp_path, AdaptationGain(fallback=True), BestCheckpoint(), max_epochs=3)
    run.fit(module(lr=0.02), datamodule=data(tmp_path))
    assert not written(tmp_path)["panel"]["hurts"], "nothing to test"
    assert written(tmp_path)["fallback"] is None
    assert not run.checkpoint_callback.best_model_path.endswith(FALLBACK)


class Ruined(DANNModule):
    """An adaptation that destroys what the source has taught."""

    def transfer_loss(self, pair):
        super().transfer_loss(pair)
        return 100 * pair.target.square().mean() + 100 * pair.source_logits.square().mean()


def test_a_fallback_answers_as_the_twin(tmp_path, capsys):
    gain, report, method = AdaptationGain(fallback=True), Report(), module(Ruined, lr=0.03)
    run = trainer(tmp_path, gain, report, BestCheckpoint(), max_epochs=3)
    run.fit(method, datamodule=data(tmp_path))
    found, path = written(tmp_path), next(tmp_path.rglob(FALLBACK))
    assert found["panel"]["hurts"]
    assert run.checkpoint_callback.best_model_path == str(path)
    fallen = Ruined.load_from_checkpoint(path).eval()
    x = torch.from_numpy(blobs(30, 1.0, 0.6, 5)[0])
    assert torch.equal(fallen(x), gain.twin.eval()(x))
    assert not torch.allclose(fallen(x), method.eval()(x))
    assert json.loads(card_path(path).read_text())["selection"].startswith("source only")
    assert not list(tmp_path.rglob("*.part"))
    result = json.loads(next(tmp_path.rglob("results.json")).read_text())
    assert result["checkpoint"].endswith(FALLBACK)
    assert result["fallback"] == found["fallback"]
    assert result["oracle"]["selected_by"].startswith("source only")
    numbers = trainer(None).validate(fallen, datamodule=data(tmp_path), verbose=False)
    logged = {name: value for one in numbers for name, value in one.items()}
    assert result["metrics"]["selection"]["value"] == pytest.approx(logged["val/selection"], abs=1e-5)
    assert result["oracle"]["accuracy"]["value"] == pytest.approx(logged["oracle/accuracy"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "which predicts as the source-only model (fallback)" in shown
    # the same checkpoint, resumed through the Trainer
    tested = trainer(None).test(module(Ruined), datamodule=data(tmp_path), ckpt_path=str(path), verbose=False)
    plain = trainer(None).test(gain.twin, datamodule=data(tmp_path), verbose=False)
    assert tested == plain


def test_without_fallback_it_only_says_so(tmp_path, capsys):
    run = trainer(tmp_path, AdaptationGain(), BestCheckpoint(), max_epochs=3)
    run.fit(module(Ruined, lr=0.03), datamodule=data(tmp_path))
    assert written(tmp_path)["panel"]["hurts"]
    assert "adaptation seems to hurt" in capsys.readouterr().out
    assert not list(tmp_path.rglob(FALLBACK))
    assert not run.checkpoint_callback.best_model_path.endswith(FALLBACK)


def test_a_fallback_needs_a_checkpoint_to_stand_beside(tmp_path):
    trainer(tmp_path, AdaptationGain(fallback=True), max_epochs=3).fit(
        module(Ruined, lr=0.03), datamodule=data(tmp_path)
    )
    assert written(tmp_path)["fallback"].startswith("No fallback was written")


# ---- a twin from a file


def test_a_twin_from_its_checkpoint_is_not_trained_again(tmp_path):
    plain = module(SourceOnlyModule)
    run = trainer(tmp_path / "plain", BestCheckpoint())
    (tmp_path / "plain").mkdir()
    run.fit(plain, datamodule=data(tmp_path))
    path = run.checkpoint_callback.last_model_path
    expected = trainer(None).test(plain, datamodule=data(tmp_path), verbose=False)[0]["test/accuracy"]
    folder = tmp_path / "run"
    folder.mkdir()
    gain = AdaptationGain(source_only=path)
    trainer(folder, gain).fit(module(seed=9), datamodule=data(tmp_path))
    assert written(folder)["accuracy"]["source only"]["values"] == [pytest.approx(expected)]
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in gain.twin.state_dict().items())
    other = loaded(module().unadapted(), path)
    assert torch.equal(other.head.linear.weight, plain.head.linear.weight)


# ---- where it does nothing


def test_it_is_silent_where_nothing_is_asked(tmp_path, recwarn):
    method, domains = module(), data(tmp_path)
    trainer(tmp_path, AdaptationGain(), fast_dev_run=True).fit(method, datamodule=domains)
    trainer(tmp_path, AdaptationGain(seeds=0)).fit(method, datamodule=domains)
    trainer(tmp_path, AdaptationGain()).test(method, datamodule=domains, verbose=False)
    assert not list(tmp_path.rglob("adaptation_gain.*"))
    assert not [one for one in recwarn if "adaptation" in str(one.message).lower()]


def test_after_a_resume_nothing_is_measured(tmp_path):
    trainer(tmp_path, BestCheckpoint(dirpath=str(tmp_path))).fit(module(), datamodule=data(tmp_path))
    run = trainer(tmp_path / "on", AdaptationGain(), max_epochs=3)
    (tmp_path / "on").mkdir()
    with pytest.warns(UserWarning, match="AdaptationGain is skipped: the fit was resumed"):
        run.fit(module(), datamodule=data(tmp_path), ckpt_path=str(tmp_path / "last.ckpt"))
    assert not list(tmp_path.rglob("adaptation_gain.json"))


def test_ctrl_c_in_the_comparison_leaves_the_run_done(tmp_path, monkeypatch):
    class Impatient(SourceOnlyModule):
        def training_step(self, batch, batch_idx):
            raise KeyboardInterrupt

    monkeypatch.setattr(DANNModule, "unadapted", lambda self: module(Impatient))
    handler = signal.getsignal(signal.SIGINT)
    run = trainer(tmp_path, AdaptationGain(), Report())
    with pytest.warns(UserWarning, match="was interrupted, so no gain is reported; the run itself is complete"):
        run.fit(module(), datamodule=data(tmp_path))
    assert signal.getsignal(signal.SIGINT) == handler
    assert next(tmp_path.rglob("results.json")).exists()
    assert not list(tmp_path.rglob("adaptation_gain.json"))


def test_what_it_cannot_do_is_refused_before_the_fit_where_it_was_asked_for(tmp_path, monkeypatch):
    path = tmp_path / "images.npz"
    np.savez(path, x=np.zeros((30, 2), np.float32), y=np.arange(30) % CLASSES)
    tuned = FineTuneModule(MLP((2,), (4,)), CLASSES)
    with pytest.raises(UserError, match="FineTuneModule has no such twins: remove the callback"):
        trainer(tmp_path, AdaptationGain()).fit(tuned, datamodule=LabelledDataModule(Arrays(str(path))))
    with pytest.raises(UserError, match="limit_test_batches is 0: raise it"):
        trainer(tmp_path, AdaptationGain(), limit_test_batches=0).fit(module(), datamodule=data(tmp_path))
    trainer(tmp_path, AdaptationGain.unasked()).fit(
        FineTuneModule(MLP((2,), (4,)), CLASSES), datamodule=LabelledDataModule(Arrays(str(path)))
    )
    assert not list(tmp_path.rglob("adaptation_gain.json")), "other methods are left alone"
    run = trainer(tmp_path, AdaptationGain.unasked(), limit_test_batches=0)
    with pytest.warns(UserWarning, match=r"AdaptationGain is skipped: .* limit_test_batches is 0"):
        run.fit(module(), datamodule=data(tmp_path))
    assert run.global_step
    with pytest.raises(UserError, match="nowhere"):
        trainer(tmp_path, AdaptationGain(source_only="nowhere.ckpt")).fit(module(), datamodule=data(tmp_path))
    content = {"state_dict": {"head.weight": torch.zeros(1, 1)}, "pytorch-lightning_version": "2.6.0"}
    torch.save(content, tmp_path / "other.ckpt")
    other = AdaptationGain(source_only=str(tmp_path / "other.ckpt"))
    with pytest.raises(UserError, match="do not fit this SourceOnlyModule"):
        trainer(tmp_path, other).fit(module(), datamodule=data(tmp_path))
    monkeypatch.setattr(pl.Trainer, "world_size", property(lambda _: 2))
    run = trainer(tmp_path)
    with pytest.raises(UserError, match="AdaptationGain trains in one process"):
        AdaptationGain().setup(run, module(), "fit")
    with pytest.warns(UserWarning, match="AdaptationGain is skipped: it trains in one process"):
        AdaptationGain.unasked().setup(run, module(), "fit")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"seeds": -1}, "seeds must"),
        ({"split": "train"}, "split must be one of val, test, but is 'train'"),
        ({"seeds": 2, "source_only": "twin.ckpt"}, "source_only is the twin of one seed, but seeds is 2"),
    ],
)
def test_wrong_arguments(arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        AdaptationGain(**arguments)


# ---- in words and pictures


def test_the_command_adds_it_and_prints_one_report(tmp_path, monkeypatch, capsys):
    data(tmp_path)
    monkeypatch.chdir(tmp_path)
    arguments = [
        "--model=metatransfer.methods.domain.DANNModule", "--model.backbone=MLP", "--model.backbone.in_shape=[2]",
        "--data=metatransfer.DomainDataModule", "--data.batch_size=16",
        '--data.sources={"s": {"class_path": "Arrays", "init_args": {"path": "source.npz"}}}',
        '--data.targets={"t": {"class_path": "Arrays", "init_args": {"path": "target.npz"}}}',
        "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
    ]  # fmt: skip
    main(["fit", *arguments, "--trainer.max_epochs=2"])
    shown = " ".join(capsys.readouterr().out.split())
    run = tmp_path / "lightning_logs" / "version_0"
    found = json.loads((run / "adaptation_gain.json").read_text())
    assert found["verdict"] in shown
    assert "trained on s (84) with labels and t (84) without" in shown
    assert "labels of the target, for the report only" in shown
    assert np.asarray(Image.open(run / "figures" / "adaptation_gain.png")).std() > 10
    assert (run / "domain_diagnostics.json").exists()
    result = json.loads((run / "results.json").read_text())
    assert result["protocol"]["selection"] == "max val/selection"
    assert result["samples"] == 12
    best = next((run / "checkpoints").glob("epoch*.ckpt"))
    for command, metric in (("validate", "selection"), ("test", "accuracy")):
        main([command, *arguments, "--ckpt_path", str(best)])
        folder = max((tmp_path / "lightning_logs").glob("version_*"), key=lambda one: int(one.name[8:]))
        answer = json.loads((folder / "results.json").read_text())
        assert metric in answer["metrics"]
        assert ("oracle" in answer) == (command == "validate")
        assert not (folder / "adaptation_gain.json").exists()
        assert answer["samples"] == {"validate": 12, "test": 24}[command]
    assert set(answer["baselines"]) == {"most frequent class", "source 1-NN"}
    with pytest.raises(SystemExit) as stop:
        main(["fit", *arguments, "--checkpoint.monitor=oracle/accuracy"])
    assert stop.value.code == 2
    assert "set data.oracle=select" in capsys.readouterr().err
