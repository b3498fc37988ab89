"""``lightning recommend`` from data on disk to the answer."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from conftest import ROOT
from metatransfer.cli import main
from metatransfer.experiments.knowledge import Knowledge
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
    main(["recommend", "--data", str(tmp_path / "mine.npz"), "--knowledge", str(knowledge), "--shots", "5",
          "--output", str(tmp_path / "answer.json")])  # fmt: skip
    told = " ".join(capsys.readouterr().out.split())
    assert "Methods for mine.npz, from 8 known tasks" in told
    assert "Nearest known tasks: t" in told
    assert "Do not rely on this order: the task is far from every known one" in told
    answer = json.loads((tmp_path / "answer.json").read_text())
    assert [one["name"] for one in answer["ranking"]] == ["a", "b"]
    assert [answer["features"][name] for name in ("samples", "classes", "shots")] == [1200, 3, 5]


def test_tables_and_mistakes(tmp_path, knowledge, capsys):
    rows = ["size,colour,label", *(f"{i % 7},{'red' if i % 2 else 'blue'},{'ab'[i % 2]}" for i in range(60))]
    (tmp_path / "mine.csv").write_text("\n".join(rows))
    main(["recommend", "--data", str(tmp_path / "mine.csv"), "--knowledge", str(knowledge)])
    assert "mine.csv" in capsys.readouterr().out
    texts = ["text,label", *(f"a text of some words number {i},{'ab'[i % 2]}" for i in range(60))]
    (tmp_path / "texts.csv").write_text("\n".join(texts))
    assert "give their embeddings" in refused(capsys, "--data", tmp_path / "texts.csv", "--knowledge", knowledge)
    assert "needs --knowledge" in refused(capsys, "--data", tmp_path / "mine.csv")
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
