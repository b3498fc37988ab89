"""``lightning recommend`` from data on disk to the answer."""

from __future__ import annotations

import json
import re
import runpy
import shlex

import numpy as np
import pytest

from conftest import ROOT
from messages import keep
from metatransfer.cli import main
from metatransfer.cli.entries import Candidate
from metatransfer.experiments.knowledge import SHIPPED, Knowledge, read_json
from metatransfer.experiments.selector import StrategySelector
from metatransfer.functional.task_features import TaskFeatures


@pytest.fixture
def knowledge(tmp_path):
    """A knowledge file in which method a is always best."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(8, len(TaskFeatures._fields)))
    scores = np.array([0.9, 0.5]) + rng.normal(size=(8, 2)) * 0.01
    known = Knowledge(tuple(f"t{i}" for i in range(8)), TaskFeatures._fields, ("a", "b"), values, scores)
    StrategySelector(num_trees=5).fit(known).save(tmp_path / "known.json")
    return tmp_path / "known.json"


def refused(capsys, *typed):
    with pytest.raises(SystemExit) as stop:
        main(["recommend", *map(str, typed)])
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_arrays_get_a_recommendation(tmp_path, knowledge, capsys):
    rng = np.random.default_rng(1)
    np.savez(tmp_path / "mine.npz", x=rng.normal(size=(1200, 4)).astype("float32"), y=np.arange(1200) % 3)
    main(["recommend", "--data", str(tmp_path / "mine.npz"), "--knowledge", str(knowledge), "--ways", "3",
          "--shots", "5", "--output", str(tmp_path / "answer.json")])  # fmt: skip
    told = " ".join(capsys.readouterr().out.split())
    assert "Methods for mine.npz, from 8 known tasks" in told
    assert "Nearest known tasks: t" in told
    assert "Do not rely on this order: the task is far from every known one" in told
    answer = json.loads((tmp_path / "answer.json").read_text())
    assert [one["name"] for one in answer["ranking"]] == ["a", "b"]
    assert [answer["features"][name] for name in ("samples", "classes", "shots")] == [1200, 3, 5]


def test_the_knowledge_of_the_package_gives_a_command(tmp_path, capsys):
    rng = np.random.default_rng(1)
    y = np.arange(60) % 3
    np.savez(tmp_path / "mine.npz", x=(rng.normal(size=(60, 4)) + y[:, None]).astype("float32"), y=y)
    main(["recommend", "--data", str(tmp_path / "mine.npz"), "--data.labels_per_class", "7",
          "--output", str(tmp_path / "answer.json")])  # fmt: skip
    told = " ".join(capsys.readouterr().out.split())
    assert "Your data: fixed classes with labelled training samples (data.labels_per_class is given)." in told
    answer = json.loads((tmp_path / "answer.json").read_text())
    names = [one["name"] for one in answer["ranking"]]
    words = shlex.split(answer["command"])
    assert words[2:6] == ["--data.source", str(tmp_path / "mine.npz"), "--data.labels_per_class", "7"]
    assert words[:2] == ["lightning", "compare"]
    assert words[6:] == ["--methods", *names[:3]]
    assert [answer["features"][name] for name in ("samples", "shots")] == [21, 7]  # only these labels are used
    # no method that needs images or training classes
    assert all("RawFeatures" in name or name.startswith("own/table") for name in names)
    assert answer["features"]["pretrained_nearest_mean"] is None


@pytest.mark.slow
def test_images_with_training_classes_have_all_methods(tmp_path, capsys):
    x = (np.random.default_rng(0).random((40, 20, 20)) * 255).astype("uint8")
    labels = np.array([f"class {i % 10}" for i in range(40)])
    first = np.arange(40) % 10 < 5
    np.savez(tmp_path / "i.npz", x_train=x[first], y_train=labels[first], x_test=x[~first], y_test=labels[~first])
    main(["recommend", "--data", str(tmp_path / "i.npz"), "--ways", "2", "--shots", "3",
          "--output", str(tmp_path / "answer.json")])  # fmt: skip
    assert "data.task is given" in " ".join(capsys.readouterr().out.split())
    answer = json.loads((tmp_path / "answer.json").read_text())
    shipped = read_json(SHIPPED, "it")["knowledge"]
    assert {one["name"] for one in answer["ranking"]} == set(shipped["methods"])
    assert "--data.task.num_ways 2 --data.task.num_shots 3" in answer["command"]
    assert answer["features"]["ways"] == 2


def test_the_knowledge_of_the_package():
    known = Knowledge.from_plain(read_json(SHIPPED, "it")["knowledge"])
    assert SHIPPED.stat().st_size < 1_000_000
    assert len(known.tasks) >= 40
    assert np.isfinite(known.scores).sum(1).min() >= 5
    assert len(known.methods) >= 10
    for name in known.methods:
        assert Candidate.parse(name).name == name  # the user can run it
    assert known.features[: len(TaskFeatures._fields)] == TaskFeatures._fields
    with np.errstate(invalid="ignore"):
        assert np.nanmin(known.scores) >= 0
        assert np.nanmax(known.scores) <= 1


def test_the_benchmark_of_the_knowledge_of_the_package():
    """It measured the settings that are shipped, and knows the family of every task."""
    shipped = read_json(SHIPPED, "it")
    measured = json.loads((ROOT / "benchmarks" / "results" / "knowledge.json").read_text())
    assert measured["settings"] == shipped["settings"]
    script = runpy.run_path(str(ROOT / "benchmarks" / "knowledge.py"))
    families = {name: script["family"](name) for name in shipped["knowledge"]["tasks"]}
    assert set(families.values()) == set(script["FAMILIES"])
    assert measured["families"] == len(script["FAMILIES"])
    alike = ("turned handwritten digits: 2 classes, 3 labels each", "table digits: 10 classes, 2 labels each")
    assert {families[name] for name in alike} == {"handwritten digits"}


def test_two_domains_get_an_outlook(tmp_path, capsys):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 4)).astype("float32"), np.arange(60) % 3
    np.savez(tmp_path / "near.npz", x=x, y=np.array(["a", "b", "c"])[y])
    np.savez(tmp_path / "far.npz", x=x + 9, y=np.array(["a", "b", "b"])[y])
    source, target = (str(tmp_path / f"{name}.npz") for name in ("near", "far"))
    main(
        ["recommend", "--data.sources.near", source, "--data.targets.far", target, "--output", str(tmp_path / "a.json")]
    )
    told = capsys.readouterr().out
    answer = json.loads((tmp_path / "a.json").read_text())
    assert told.strip() == answer["sentence"]
    assert answer["a_distance"] == 2.0
    assert "has 2 of the 3 classes of the source" in told
    assert "need the same classes" in told
    np.savez(tmp_path / "unlabelled.npz", x=x)
    main(["recommend", "--data.sources.near", source, "--data.targets.new", str(tmp_path / "unlabelled.npz")])
    assert "the classes of the target are unknown" in capsys.readouterr().out
    assert "two domains are needed" in keep(refused(capsys, "--data.sources.near", source))


def rows(path, colours, sizes, labels="abc"):
    """A table with a column of words, one of numbers, and one of labels."""
    lines = [f"{colours[i % len(colours)]},{size},{labels[i % len(labels)]}" for i, size in enumerate(sizes)]
    path.write_text("\n".join(["colour,size,label", *lines]))
    return path


def distance(tmp_path, source, target):
    """The A-distance of a source and a target, by the command."""
    main(["recommend", "--data.sources.a", str(source), "--data.targets.b", str(target),
          "--output", str(tmp_path / "out.json")])  # fmt: skip
    return json.loads((tmp_path / "out.json").read_text())["a_distance"]


def test_tables_of_two_domains_are_encoded_by_the_source(tmp_path):
    """Each by itself would be standardised to the same numbers, and a shift could not be seen."""
    sizes = np.random.default_rng(0).normal(size=90)
    source = rows(tmp_path / "source.csv", ["red", "blue"], sizes)
    assert distance(tmp_path, source, rows(tmp_path / "same.csv", ["red", "blue"], sizes)) < 0.5
    assert distance(tmp_path, source, rows(tmp_path / "shifted.csv", ["red", "blue"], sizes + 10)) == 2.0
    # only the order of the rows differs, and with it the numbers of the words
    assert distance(tmp_path, source, rows(tmp_path / "order.csv", ["blue", "red"], sizes)) < 0.5
    assert distance(tmp_path, source, rows(tmp_path / "other.csv", ["green", "black"], sizes)) == 2.0


def test_mistakes_in_domains_are_one_sentence(tmp_path, capsys):
    rng = np.random.default_rng(0)
    source = rows(tmp_path / "source.csv", ["red"], rng.normal(size=30))
    few = rows(tmp_path / "few.csv", ["red"], rng.normal(size=3))
    single = rows(tmp_path / "single.csv", ["red"], rng.normal(size=30), "a")
    for width in (2, 3):
        np.savez(tmp_path / f"{width}.npz", x=rng.normal(size=(30, width)), y=np.arange(30) % 3)
    first = "--data.sources.a", tmp_path / "2.npz"
    for typed, words in (
        ((*first, "--data.sources.b", tmp_path / "3.npz", "--data.targets.c", tmp_path / "2.npz"), "source 'b' (3,)"),
        ((*first, "--data.targets.c", tmp_path / "3.npz"), "target 'c' (3,)"),
        ((*first, "--data.targets.c", source), "target 'c' and source 'a' differ"),
        (("--data.sources.a", single, "--data.targets.c", source), "at least 2 classes"),
        (("--data.sources.a", source, "--data.targets.c", few), "but has 3"),
    ):
        assert words in keep(refused(capsys, *typed))


def test_tables_and_mistakes(tmp_path, knowledge, capsys):
    rows = ["size,colour,label", *(f"{i % 7},{'red' if i % 2 else 'blue'},{'ab'[i % 2]}" for i in range(60))]
    (tmp_path / "mine.csv").write_text("\n".join(rows))
    main(["recommend", "--data", str(tmp_path / "mine.csv"), "--knowledge", str(knowledge)])
    assert "mine.csv" in capsys.readouterr().out
    texts = ["text,label", *(f"a text of some words number {i},{'ab'[i % 2]}" for i in range(60))]
    (tmp_path / "texts.csv").write_text("\n".join(texts))
    assert "give their embeddings" in refused(capsys, "--data", tmp_path / "texts.csv", "--knowledge", knowledge)
    assert "need a source" in keep(refused(capsys, "--data.labels_per_class", "3"))
    assert "also need --ways" in keep(refused(capsys, "--data", tmp_path / "mine.csv", "--shots", "5"))
    assert "does not exist" in refused(capsys, "--data", tmp_path / "mine.csv", "--knowledge", tmp_path / "no.json")


def test_the_documented_program_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "recommend.md").read_text()
    (block,) = re.findall(r"^```python\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)
    names = {}
    exec(compile(block, "docs/recommend.md", "exec"), names)
    assert capsys.readouterr().out.split()[0] in {"protonet", "finetune"}
    again = StrategySelector.load("knowledge.json")
    assert again.knowledge_.methods == ("protonet", "finetune")
    assert again.predict(names["task_features"](*names["tasks"][0])) == names["answer"]
