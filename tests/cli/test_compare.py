"""``lightning compare``: runs, stored runs, rows of failures, mistakes."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from typing import ClassVar

import pytest
import torch
import yaml

import messages
from metatransfer import (
    ClassBatches,
    Digits,
    Division,
    Episodes,
    EpisodicDataModule,
    EvalTask,
    Glyphs,
    LabelledDataModule,
    Task,
)  # fmt: skip
from metatransfer.cli import main
from metatransfer.cli.comparing import Runner, _steps
from metatransfer.cli.entries import Candidate, Situation, read_data, situation_of, words
from metatransfer.cli.entry_data import data_section
from metatransfer.cli.entry_run import Job
from metatransfer.cli.executors.local import Local
from metatransfer.errors import UserError
from metatransfer.experiments.ranking import Outcome

SMALL = [
    "--data.source=Glyphs", "--data.episodes.val=2", "--data.episodes.test=6", "--data.eval_task.num_queries=2",
    "--budget=2steps", "--seeds=1", "--trainer.accelerator=cpu",
]  # fmt: skip


def compared(folder):
    (path,) = (folder / "lightning_logs").glob("compare-*/comparison.json")
    return json.loads(path.read_text())


def test_methods_are_compared_and_not_run_again(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    broken = tmp_path / "broken.yaml"
    config = {"model": {"class_path": "ProtoNetModule", "init_args": {"backbone": "Conv4", "distance": "none"}}}
    broken.write_text(yaml.safe_dump(config))
    methods = ["protonet --model.backbone.hidden_channels 4", "frozen_features", str(broken)]
    main(["compare", *SMALL, "--methods", *methods])
    first, table = compared(tmp_path), capsys.readouterr().out
    entries = first["entries"]
    assert {methods[0], "frozen_features", "pixel 1-NN"} < set(entries)
    assert any(name.startswith("support-free") for name in entries)
    assert list(first["failures"]) == ["broken"]
    assert "distance" in first["failures"]["broken"]
    assert len({one["units"] for entry in entries.values() for one in entry["seeds"].values()}) == 1
    assert entries[methods[0]]["seeds"]["0"]["steps"] == 2
    assert first["conclusion"] in table
    assert "lightning test --config" in table
    assert list((tmp_path / "lightning_logs").glob("compare-*/comparison.png"))
    main(["compare", *SMALL, "--methods", *methods])
    second = compared(tmp_path)
    assert second["seconds"]["new_runs"] == 1  # the broken one may work now
    assert second["entries"] == entries
    # one that was killed is run again, and ends the same
    (stored,) = (tmp_path / "lightning_logs").glob("compare-*/runs/protonet*-seed0-*/outcomes.json")
    stored.unlink()
    main(["compare", *SMALL, "--methods", *methods])
    third = compared(tmp_path)
    assert third["seconds"]["new_runs"] == 2
    assert third["entries"][methods[0]]["accuracy"] == entries[methods[0]]["accuracy"]


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["--data.source=Glyphs", "--methods", "protonett"], "Did you mean protonet?"),
        (["--data.source=Glyphs", "--methods", "protonet", "--budget", "soon"], "budget must be a time"),
        (["--data.source=Glyphs", "--methods", "protonet", "protonet"], "given twice"),
        (["--data.source=Glyphs", "--methods", "dann"], "'dann' is for a source and a target domain"),
        (["--data.source=Digits", "--methods", "protonet"], "'protonet' is for tasks of new classes"),
        (["--data.source=nowhere/at/all", "--methods", "protonet"], "does not exist"),
        (["--data.seed=1", "--methods", "protonet"], "data need a source"),
        (["--data.source=Glyphs", "--methods", "protonet", "--seeds", "0"], "seeds"),
        (["--data.source=Glyphs"], "lightning compare needs --methods"),
        (["--data.source=Glyphs", "--methods", "protonet", "--executor", "rey"], "Did you mean ray?"),
        (["--data.source=Glyphs", "--methods", "protonet", "--tune", "0"], "tune must be a whole number"),
        (["--data.source=Glyphs", "--methods", "protonet", "--tune=x"], "tune must be a whole number"),
        (["--data.source=Glyphs", "--methods", "protonet", "--tune=2", "--tune.space={model.lrr: [1]}"], "lrr"),
    ],
)
def test_mistakes(typed, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["compare", *typed])
    assert stop.value.code == 2
    (message,) = capsys.readouterr().err.strip().splitlines()
    assert words in messages.keep(message)


@pytest.mark.parametrize("layout", ["one class", "no test split"])
def test_data_that_cannot_be_compared_on(layout, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = ["a,b,label,split"]
    for number in range(20):
        kind = "x" if layout == "one class" or number % 2 else "y"
        split = "train" if layout == "one class" or number < 15 else "val"
        rows.append(f"{number},{number % 3},{kind},{split}")
    (tmp_path / "data.csv").write_text("\n".join(rows) + "\n")
    with pytest.raises(SystemExit) as stop:
        main(["compare", "--data.source=data.csv", "--methods", "finetune --model.backbone MLP", "--budget=1steps"])
    assert stop.value.code == 2
    message = messages.keep(capsys.readouterr().err.strip().splitlines()[-1])
    assert ("one class" if layout == "one class" else "no test split") in message


# ---- the situation and the data of an entry


def test_the_situation_follows_from_the_data():
    assert situation_of({"source": "Glyphs"}).kind == "new classes"
    assert situation_of({"source": "Digits"}).kind == "few labels"
    assert situation_of({"source": "Glyphs", "labels_per_class": 5}).kind == "few labels"
    domains = {"sources": {"typeset": "TypesetDigits"}, "targets": {"written": "Digits"}}
    assert situation_of(domains).kind == "domains"
    assert situation_of({"source": "Sinusoids"}).kind == "new classes"


def test_options_of_the_command_line_are_nested_after_those_of_a_file():
    given = {"source": "Glyphs", "task": {"num_ways": 5, "num_shots": 1}, "task/num_shots": "5", "a/b/c": "x"}
    assert read_data(given)["task"] == {"num_ways": 5, "num_shots": 5}
    assert read_data(given)["a"] == {"b": {"c": "x"}}
    assert read_data({"time": "1:30:00", "days": "2-1"}) == {"time": "1:30:00", "days": "2-1"}  # not 5400 seconds


def test_all_entries_are_tested_on_one_protocol_and_train_in_their_own_way():
    situation = situation_of({"source": "Glyphs"})
    data = {"source": "Glyphs", "eval_task": {"num_shots": 5}}
    names = ("protonet", "maml", "pretrain")
    sections = {name: data_section(Candidate.parse(name), situation, data, 1) for name in names}
    own = {name: one["init_args"] for name, one in sections.items()}
    own["pretrain"] = own["pretrain"]["episodes"]["init_args"]
    shapes = [one["eval_task"] for one in own.values()]
    assert shapes == [{"num_ways": 5, "num_shots": 5, "num_queries": 15}] * 3
    assert {one["episodes"]["test"] for one in own.values()} == {600}
    assert own["protonet"]["task"]["num_ways"] == 20
    assert own["maml"]["task"]["num_ways"] == 5
    assert sections["pretrain"]["class_path"] == "ClassBatches"


@pytest.mark.parametrize("name", ["protonet", "pretrain"])
def test_all_seeds_have_their_own_training_tasks_and_the_same_test_tasks(name):
    situation, shown = situation_of({"source": "Glyphs"}), {"train": [], "val": [], "test": []}
    data = {"source": "Glyphs", "episodes": {"train": 8, "val": 2, "test": 2, "per_batch": 2}}
    for seed in (0, 1, 0):
        own = data_section(Candidate.parse(name), situation, data, seed)["init_args"]
        own = own["episodes"]["init_args"] if name == "pretrain" else own
        made = EpisodicDataModule(
            Glyphs(), Task(**own["task"]), EvalTask(**own["eval_task"]), Episodes(**own["episodes"]), seed=own["seed"]
        )
        made = ClassBatches(made) if name == "pretrain" else made
        made.setup("fit")
        made.setup("test")
        for split in shown:
            loader = made.train_dataloader() if split == "train" else getattr(made, f"{split}_dataloader")()
            batch = next(iter(loader[0] if isinstance(loader, list) else loader))
            parts = [part for part in batch if isinstance(part, torch.Tensor)]
            shown[split].append(hashlib.sha256(b"".join(one.numpy().tobytes() for one in parts)).hexdigest())
    assert shown["train"][0] == shown["train"][2] != shown["train"][1]
    assert len(set(shown["val"])) == len(set(shown["test"])) == 1


def test_all_seeds_are_tested_on_the_same_samples():
    data = {"source": "Digits", "labels_per_class": 2, "division": {"test_fraction": 0.5}}
    served = []
    for seed in (0, 1):
        section = data_section(Candidate.parse("finetune"), Situation("few labels", "", "", ""), data, seed)[
            "init_args"
        ]
        assert section["division"] == {"seed": 0, "test_fraction": 0.5}
        section.update(source=Digits(), division=Division(**section["division"]))
        served.append(LabelledDataModule(**section))
    assert served[0].content_key("test") == served[1].content_key("test")
    assert served[0].content_key("train") != served[1].content_key("train")
    domains = {"sources": {"typeset": "TypesetDigits"}, "targets": {"written": "Digits"}}
    of_domains = [
        data_section(Candidate.parse("dann"), Situation("domains", "", "", ""), domains, seed) for seed in (0, 1)
    ]
    assert of_domains[0] == of_domains[1]


@pytest.mark.parametrize(
    ("own", "typed", "common", "steps"),
    [
        ({"max_epochs": 7}, "", {}, 7),
        ({"max_epochs": 7}, "--trainer.max_epochs 3 --trainer.max_epochs=5", {}, 5),
        ({"max_epochs": 7}, "--trainer.max_epochs 4", {"max_epochs": 2}, 4),
        ({"max_epochs": 7}, "", {"max_epochs": 2}, 2),
        ({"max_epochs": -1}, "", {}, 30),
        ({"max_epochs": 7}, "--trainer.max_epochs null", {}, 30),
        (None, "", {}, 30),
    ],
)
def test_steps_on_a_support_set_are_epochs(own, typed, common, steps):
    assert _steps(Candidate("one", {"trainer": own}, tuple(typed.split()), object), common) == steps


def test_an_entry_needs_a_model(tmp_path):
    (tmp_path / "empty.yaml").write_text("trainer: {max_epochs: 1}\n")
    with pytest.raises(UserError, match="no section model"):
        Candidate.parse(str(tmp_path / "empty.yaml"))


@pytest.mark.parametrize(
    "given",
    [
        "--trainer.max_steps 9", "--trainer.max_time=00:01:00:00", "--trainer.min_epochs 5", "--trainer.max_st 9",
        "--trainer '{max_steps: 9}'", "--seed_everything 3", "--ckpt_path a.ckpt", "--config more.yaml",
        "--data.seed 1", "--data.division.test_fraction=0.1", "--data.eval_task.num_ways 2", "--data.episodes.test 1",
        "--data.init_args.oracle select", "--data '{seed: 1}'",
    ],
)  # fmt: skip
def test_what_is_common_is_given_to_the_comparison(given):
    with pytest.raises(UserError) as error:
        Candidate.parse(f"protonet --model.distance cosine {given}")
    assert "not to one entry" in messages.keep(str(error.value))


def test_paths_keep_the_backslashes_of_windows():
    text = r'mine.yaml --model.weights "C:\a b\c.pt"  --x=D:\e # f'
    assert words(text, windows=True) == ["mine.yaml", "--model.weights", r"C:\a b\c.pt", r"--x=D:\e", "#", "f"]
    assert words(r"a\ b 'c d'", windows=False) == ["a b", "c d"]


def test_an_entry_has_its_own_training(tmp_path):
    own = [
        "--trainer.max_epochs=3", "--trainer.gradient_clip_val=1", "--data.task.num_ways=5", "--data.batch_size=8",
        "--data.init_args.episodes.per_batch=2", "--data.episodes.init_args.task.num_ways=5", "--data.balance=none",
        "--data.processing.augmentation=RandomAffine", "--data.eval_batch_size=9", "--model.distance=-1",
    ]  # fmt: skip
    assert list(Candidate.parse(" ".join(["protonet", *own])).arguments) == own
    (tmp_path / "mine.yaml").write_text("model: ProtoNetModule\nckpt_path: last\n")
    with pytest.raises(UserError, match="--ckpt_path must be the same"):
        Candidate.parse(str(tmp_path / "mine.yaml"))


# ---- several processes


@pytest.mark.slow
def test_jobs_side_by_side_in_processes_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for new_runs in (4, 0):  # the two methods, the baselines and the best method without its support labels
        main(
            [
                "compare",
                *SMALL,
                "--jobs=2",
                "--methods",
                "protonet --model.backbone.hidden_channels 4",
                "frozen_features",
            ]
        )
        found = compared(tmp_path)
        assert found["failures"] == {}
        assert found["seconds"]["new_runs"] == new_runs


class Pool:
    """Stands for a pool of processes, whose first job ends well and whose second one is killed."""

    shutdowns: ClassVar = []

    def __init__(self, *_):
        self.jobs = 0

    def submit(self, _, job):
        done = Future()
        self.jobs += 1
        if self.jobs == 1:
            done.set_result(([Outcome(job.name, job.seed, [1.0])], 2.0))
        else:
            done.set_exception(BrokenProcessPool())
        return done

    def shutdown(self, **given):
        self.shutdowns.append(given)


def jobs_in(folder):
    return [Job("a", "method", {}, (), seed, folder / str(seed)) for seed in range(2)]


def test_a_killed_process_is_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr("metatransfer.cli.executors.local.ProcessPoolExecutor", Pool)
    well, killed = Runner(Local(2)).run(jobs_in(tmp_path))["a"]
    assert well.scores == [1.0]
    assert "fewer --jobs" in messages.keep(killed.failure)
    assert not any(job.stored() for job in jobs_in(tmp_path))


def test_jobs_in_the_queue_are_not_waited_for_after_an_interrupt(tmp_path, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("metatransfer.cli.executors.local.ProcessPoolExecutor", Pool)
    monkeypatch.setattr("metatransfer.cli.executors.local.as_completed", interrupted)
    Pool.shutdowns.clear()
    with pytest.raises(KeyboardInterrupt):
        Runner(Local(2)).run(jobs_in(tmp_path))
    assert Pool.shutdowns == [{"wait": False, "cancel_futures": True}]
