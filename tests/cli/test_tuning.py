"""The search of hyper-parameters: trials, pruning, a search that is killed, what is told; with the real Optuna."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import yaml
from filelock import FileLock
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from test_compare import SMALL, compared
from test_search_space import jobs

import messages
from metatransfer.cli import main
from metatransfer.cli.comparison_report import trials_in_words
from metatransfer.cli.executors.base import Killed
from metatransfer.cli.executors.local import Local
from metatransfer.cli.tuning import Search, Tuned
from metatransfer.cli.tuning_trial import Validations, distributions, storage_at
from metatransfer.errors import UserError

optuna = pytest.importorskip("optuna")
OperationalError = pytest.importorskip("sqlalchemy.exc").OperationalError
LR = {"model.optimizer.lr": {"low": 1e-4, "high": 1.0, "log": True}}


class FakeTrainer:
    """Stands for a Trainer: every validation is scored by the learning rate; there is no test."""

    def __init__(self, scores, mode="max"):
        self.scores, self.callbacks, self.callback_metrics = scores, [], {}
        self.checkpoint_callback = SimpleNamespace(monitor="val/score", mode=mode)
        self.should_stop = self.sanity_checking = False
        self.state = SimpleNamespace(fn=None)

    def fit(self, *_, **__):
        self.state.fn = "fit"
        for score in self.scores:
            if not self.should_stop:
                self._validate(score)

    def validate(self, *_, **__):
        self.state.fn = "validate"
        self._validate(self.scores[-1])

    def _validate(self, score):
        self.callback_metrics["val/score"] = score
        for one in self.callbacks:
            one.on_validation_end(self, None)


@pytest.fixture
def scored(monkeypatch):
    """Trials whose validations are a function of the learning rate, instead of trainings."""

    def use(scores, mode="max"):
        def run_with(job, measure):
            rate = float(job.arguments[-1].partition("=")[2])
            measure(FakeTrainer(scores(rate), mode), None, None)

        monkeypatch.setattr("metatransfer.cli.tuning_trial.run_with", run_with)

    return use


def peak(rate):
    """Highest at 0.03."""
    return [-abs(math.log(rate / 0.03)) - late for late in (2.0, 1.0, 0.0)]


def a_search(folder, trials=8, space=LR):
    found = {name: replace(job, folder=folder / "tuning" / name) for name, job in jobs("protonet").items()}
    return Search({"trials": trials, "space": space}, found, folder)


def trials_of(folder):
    return study_in(folder).trials


def study_in(folder):
    storage = storage_at(folder / "tuning.db")
    (one,) = optuna.get_all_study_summaries(storage)
    return optuna.load_study(study_name=one.study_name, storage=storage)


@pytest.mark.slow
def test_the_best_validation_wins(tmp_path, scored, capsys):
    scored(peak)
    found = a_search(tmp_path).run(Local(1))["protonet"]
    trials = trials_of(tmp_path)
    assert trials[0].params["model.optimizer.lr"] == 0.002  # as configured
    best = max((one for one in trials if one.state.name == "COMPLETE"), key=lambda one: one.value)
    assert found.arguments == (f"--model.optimizer.lr={best.params['model.optimizer.lr']}",)
    assert found.card["validation"] == {"metric": "val/score", "value": best.value}
    assert best.value == max(peak(best.params["model.optimizer.lr"]))
    assert found.card["trials"] == len(trials) == 8
    assert len({one.params["model.optimizer.lr"] for one in trials}) == 8  # each trial has its own seed
    assert "[8/8] protonet, trial 7" in capsys.readouterr().out
    assert not list((tmp_path / "tuning" / "protonet").iterdir())


@pytest.mark.slow
def test_a_metric_that_is_minimised(tmp_path, scored):
    scored(lambda rate: [-one for one in peak(rate)], mode="min")
    found = a_search(tmp_path).run(Local(1))["protonet"]
    rate = found.card["values"]["model.optimizer.lr"]
    assert found.card["validation"]["value"] == pytest.approx(abs(math.log(rate / 0.03)))


def test_what_is_configured_stays_if_nothing_is_better(tmp_path, scored):
    scored(lambda rate: [0.5])
    found = a_search(tmp_path, trials=3).run(Local(1))["protonet"]
    assert found.arguments == ()
    assert str(found).startswith("as configured (3 trials, ")


def test_bad_trials_are_pruned(tmp_path, scored):
    """Once five trials have ended, a trial is stopped that begins worse than their median."""
    began = []

    def worse_and_worse(rate):
        began.append(rate)
        return [-len(began), -len(began), -len(began)]

    scored(worse_and_worse)
    found = a_search(tmp_path).run(Local(1))["protonet"]
    assert found.card["pruned"] == 3
    assert [one.state.name for one in trials_of(tmp_path)] == ["COMPLETE"] * 5 + ["PRUNED"] * 3
    assert [len(one.intermediate_values) for one in trials_of(tmp_path)] == [3] * 5 + [1] * 3
    assert "3 pruned" in str(found)


class Scored(BoringModel):
    """Logs a score at each validation."""

    def on_validation_epoch_end(self):
        self.log("val/score", 0.25)


def test_a_pruned_fit_ends_after_the_validation(tmp_path):
    """By Lightning's Trainer, with several validations in one epoch."""
    reported = []
    trial = SimpleNamespace(
        report=lambda score, step: reported.append((score, step)), should_prune=lambda: len(reported) == 2
    )
    watch = Validations(trial)
    trainer = Trainer(
        max_epochs=1, limit_train_batches=12, limit_val_batches=1, val_check_interval=3, logger=False,
        accelerator="cpu", enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        callbacks=[ModelCheckpoint(tmp_path, monitor="val/score", mode="max"), watch],
    )  # fmt: skip
    trainer.fit(Scored())
    assert reported == [(0.25, 1), (0.25, 2)]  # without the sanity check
    assert watch.pruned
    assert trainer.global_step == 6


def test_trials_that_fail_count(tmp_path, scored):
    scored(lambda rate: [math.nan, math.inf])
    found = a_search(tmp_path, trials=2).run(Local(1))["protonet"]
    assert (found.arguments, found.card["trials"], found.card["failed"]) == ((), 2, 2)
    assert "no validation has a finite score" in messages.keep(found.card["failures"][0])
    assert "2 failed" in str(found)
    scored(lambda rate: 1 / 0)
    assert a_search(tmp_path, trials=3).run(Local(1))["protonet"].card["failures"][0].startswith("ZeroDivisionError")
    assert (tmp_path / "tuning" / "protonet" / "trial2" / "log.txt").exists()


def test_a_killed_search_goes_on_and_ends_the_same(tmp_path, scored):
    scored(peak)
    whole = a_search(tmp_path / "whole").run(Local(1))["protonet"]
    begun = []

    def killed(rate):
        begun.append(rate)
        if len(begun) == 4:
            raise KeyboardInterrupt
        return peak(rate)

    scored(killed)
    with pytest.raises(KeyboardInterrupt):
        a_search(tmp_path / "killed").run(Local(1))
    again = a_search(tmp_path / "killed").run(Local(1))["protonet"]
    assert begun[4] == begun[3]  # the trial that was killed is repeated
    assert len(begun) == 9
    assert again.arguments == whole.arguments
    assert {**again.card, "seconds": 0} == {**whole.card, "seconds": 0}


@pytest.mark.slow
def test_more_trials_cost_only_themselves(tmp_path, scored):
    scored(peak)
    few = a_search(tmp_path, trials=3).run(Local(1))["protonet"]
    a_search(tmp_path, trials=6).run(Local(1))
    assert len(trials_of(tmp_path)) == 6
    assert a_search(tmp_path, trials=3).run(Local(1))["protonet"] == few  # of the first three
    assert len(trials_of(tmp_path)) == 6


class Killing:
    """Stands for an executor: the processes of the first calls are killed, which leaves their trials running."""

    def __init__(self, folder, calls):
        self.folder, self.calls = folder, calls

    def each(self, function, items):
        for place, item in enumerate(items):
            self.calls -= 1
            if self.calls >= 0:
                study_in(self.folder).ask(distributions(LR))
            yield place, Killed("a process was killed.") if self.calls >= 0 else function(item)


def test_trials_whose_processes_are_killed_are_repeated_once(tmp_path, scored, capsys):
    scored(peak)
    found = a_search(tmp_path, trials=3).run(Killing(tmp_path, 2))["protonet"]
    assert "protonet, a process was killed." in capsys.readouterr().out
    assert (found.card["trials"], found.card["missing"]) == (3, 0)
    assert trials_of(tmp_path)[3].params["model.optimizer.lr"] == 0.002  # as configured
    assert trials_of(tmp_path)[3].user_attrs["configured"]


@pytest.mark.slow
def test_trials_that_are_still_missing_are_told(tmp_path, scored):
    scored(peak)
    found = a_search(tmp_path, trials=3).run(Killing(tmp_path, 5))["protonet"]  # 3, and 2 of their repetitions
    assert (found.card["trials"], found.card["missing"]) == (1, 2)
    assert "(1 trials, 2 missing, " in str(found)
    assert "at most 3 trials" in trials_in_words({"trials": 3, "entries": {"protonet": found.card}})
    assert a_search(tmp_path, trials=3).run(Local(1))["protonet"].card["missing"] == 0


@pytest.mark.slow
def test_trials_that_failed_are_repeated_by_the_next_command(tmp_path, scored):
    """They may have lacked memory; within a command they count, so that all entries have as many."""
    began = []

    def flaky(rate):
        began.append(rate)
        return [0.5] if len(began) != 1 else 1 / 0

    scored(flaky)
    assert a_search(tmp_path, trials=3).run(Local(1))["protonet"].card["failed"] == 1
    assert len(began) == 3
    found = a_search(tmp_path, trials=3).run(Local(1))["protonet"]
    card = found.card
    assert found.arguments == ()  # nothing is better
    assert (card["trials"], card["failed"], card["failures"]) == (3, 0, [])
    assert began[3:] == [0.002]  # as configured, as the one that failed
    a_search(tmp_path, trials=3).run(Local(1))
    assert len(began) == 4


def test_a_trial_that_cannot_be_stored_is_repeated(tmp_path, scored, monkeypatch, capsys):
    """Its first values are still those of the configuration, although it had none when it ended."""
    calls = []

    def locked(_):
        raise optuna.exceptions.StorageInternalError("database is locked")

    def locked_once(space):
        calls.append(space)
        found = distributions(space)
        if len(calls) == 1:
            found["model.optimizer.lr"].to_internal_repr = locked
        return found

    monkeypatch.setattr("metatransfer.cli.tuning_trial.distributions", locked_once)
    scored(peak)
    found = a_search(tmp_path, trials=2).run(Local(1))["protonet"]
    (line,) = [one for one in capsys.readouterr().out.splitlines() if "database is locked" in one]
    messages.keep(line)
    assert "[1/2] protonet, a trial failed: no result in" in line
    assert (found.card["trials"], found.card["missing"]) == (2, 0)
    assert trials_of(tmp_path)[2].params["model.optimizer.lr"] == 0.002


@pytest.mark.slow
def test_a_trial_that_another_command_has_ended(tmp_path, scored, capsys):
    ended = []

    def elsewhere(rate):
        if not ended:
            ended.append(study_in(tmp_path).tell(0, state=optuna.trial.TrialState.FAIL))
        return peak(rate)

    scored(elsewhere)
    assert a_search(tmp_path, trials=2).run(Local(1))["protonet"].card["trials"] == 2
    assert "[1/2] protonet, a trial failed: no result in" in capsys.readouterr().out


def test_two_commands_do_not_search_in_one_folder(tmp_path, scored):
    scored(peak)
    (tmp_path / "here").mkdir()
    with FileLock(tmp_path / "here" / "tuning.lock"), pytest.raises(UserError) as error:
        a_search(tmp_path / "here", trials=1).run(Local(1))
    assert "another command is tuning" in messages.keep(str(error.value))
    assert a_search(tmp_path / "here", trials=1).run(Local(1))["protonet"].card["trials"] == 1


def test_a_file_of_trials_that_is_locked(tmp_path, monkeypatch):
    def locked(*_):
        raise OperationalError("", {}, Exception("database is locked"))

    monkeypatch.setattr("metatransfer.cli.tuning._study", locked)
    with pytest.raises(UserError, match=r"tuning\.db' cannot be used .*database is locked.*: check its folder"):
        a_search(tmp_path, trials=1).run(Local(1))


def test_any_name_of_a_folder(tmp_path, scored):
    scored(peak)
    a_search(tmp_path / "what? {x} 100%41", trials=1).run(Local(1))
    assert (tmp_path / "what? {x} 100%41" / "tuning.db").exists()


def test_configured_numbers_that_a_list_has_in_another_form(tmp_path, scored):
    scored(lambda decay: [decay])
    found = a_search(tmp_path, trials=1, space={"model.optimizer.weight_decay": [0, 0.1]}).run(Local(1))["protonet"]
    assert (found.card["trials"], found.card["failed"]) == (1, 0)
    assert trials_of(tmp_path)[0].params == {"model.optimizer.weight_decay": "0"}


def test_the_source_accuracy_of_the_best_state(tmp_path):
    """In domain adaptation, the score is an unsupervised one."""
    trial = SimpleNamespace(report=lambda *_: None, should_prune=lambda: False)
    watch, trainer = Validations(trial), FakeTrainer([])
    trainer.callbacks = [watch]
    for score, right in [(0.1, 0.9), (0.3, 0.5), (0.2, 0.8)]:
        trainer.callback_metrics["val/source_accuracy"] = right
        trainer._validate(score)
    assert watch.source == 0.5


def test_entries_without_arguments_to_search():
    card = {"trials": 0, "space": {}, "values": {}, "seconds": 0, "pruned": 0, "failed": 0, "missing": 0}
    assert str(Tuned((), card)) == "nothing to tune"
    values = {"model.optimizer.lr": 0.001234567, "data.batch_size": 8}
    told = str(Tuned((), {**card, "trials": 4, "space": LR, "values": values, "seconds": 9.6, "pruned": 1}))
    assert told == "optimizer.lr 0.00123, data.batch_size 8 (4 trials, 1 pruned, 10 s)"


# ---- mistakes


@pytest.mark.parametrize("values", [{"low": 2.0, "high": 1.0}, {"low": 0.0, "high": 1.0, "log": True}])
def test_invalid_ranges(values, tmp_path):
    with pytest.raises(UserError, match=r"the range of model\.optimizer\.lr is invalid"):
        a_search(tmp_path, space={"model.optimizer.lr": values})


def test_a_missing_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError) as error:
        Search(3, {}, tmp_path)
    assert "metatransfer[tune]" in messages.keep(str(error.value))


# ---- the command


@pytest.mark.slow  # trains four times
def test_a_tuned_comparison(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    name = "protonet --model.backbone.hidden_channels 4"
    command = ["compare", *SMALL, "--tune", "2", "--methods", name, "frozen_features"]
    main([*command, "--tune.space", "{model.optimizer.lr: [0.1, 0.2], model.distance: [cosine]}"])
    found = compared(tmp_path)
    assert found["failures"] == {}
    assert found["tuning"]["trials"] == 2
    card = found["tuning"]["entries"][name]
    assert (card["trials"], card["failed"]) == (2, 0)
    assert card["values"]["model.distance"] == "cosine"
    assert card["validation"]["metric"] == "val/accuracy"
    assert "2 trials of tuning for each entry" in " ".join(capsys.readouterr().out.split())
    (run,) = (tmp_path / "lightning_logs").glob("compare-*/runs/protonet*/lightning_logs/version_0/config.yaml")
    model = yaml.safe_load(run.read_text())["model"]["init_args"]
    assert model["optimizer"]["init_args"]["lr"] == card["values"]["model.optimizer.lr"]
    assert model["distance"] == "cosine"
    assert found["tuning"]["entries"]["frozen_features"]["trials"] == 0
    first = json.dumps(found["entries"])
    main([*command, "--tune.space", "{model.optimizer.lr: [0.1, 0.2], model.distance: [cosine]}"])
    again = compared(tmp_path)
    assert (json.dumps(again["entries"]), again["seconds"]["new_runs"]) == (first, 0)
    assert again["tuning"] == found["tuning"]


@pytest.mark.slow
def test_a_classifier_is_judged_on_validation_tasks(tmp_path, monkeypatch):
    """Fitted to each support set, it has no training before."""
    monkeypatch.chdir(tmp_path)
    name = "finetune --trainer.max_epochs 1"
    main(["compare", *SMALL, "--tune=2", "--methods", name, "--tune.space", "{trainer.max_epochs: [1, 2]}"])
    card = compared(tmp_path)["tuning"]["entries"][name]
    assert (card["trials"], card["failed"], card["validation"]["metric"]) == (2, 0, "val/accuracy")
