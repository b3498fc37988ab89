"""The ledger is what its script makes of the result files."""

import importlib.util
import json
import sys

import numpy as np
import pytest
import yaml

from contract import ROOT

FOLDER = ROOT / "benchmarks"


@pytest.fixture
def ledger(tmp_path, monkeypatch):
    """The script, working on a copy of its files."""
    spec = importlib.util.spec_from_file_location("ledger", FOLDER / "ledger.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "results").mkdir()
    for path in [FOLDER / "published.yaml", *(FOLDER / "results").glob("*.json")]:
        (tmp_path / path.relative_to(FOLDER)).write_bytes(path.read_bytes())
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    return module


def test_the_ledger_is_up_to_date(ledger):
    assert ledger.ledger() == (FOLDER / "LEDGER.md").read_text(), "run python benchmarks/ledger.py"


def test_every_row_has_a_published_number_its_source_and_the_run(ledger):
    rows = ledger.published()
    assert rows
    for name, paper in rows.items():
        assert {"published", "source", "command", "note"} <= paper.keys(), name
        if paper.keys() & {"table", "seeds", "scores"}:
            continue
        results = json.loads((FOLDER / "results" / f"{name}.json").read_text())
        assert results["stage"] == "test"
        assert (results["episodes"] or results["samples"]) >= 600
        assert results["baselines"], name
        assert not {"checkpoint", "file"} & results.keys()
        assert ledger.number(results["metrics"], paper.get("metric", "accuracy")) in ledger.ledger()


def test_rows_of_a_table_are_the_means_of_its_pairs(ledger):
    papers = {name: paper for name, paper in ledger.published().items() if "table" in paper}
    assert {paper["method"] for paper in papers.values()} == {"1-NN", "SA", "GFK", "TCA", "JDA", "CORAL"}
    lines = ledger.ledger().splitlines()
    for name, paper in papers.items():
        results = json.loads((FOLDER / "results" / f"{paper['table']}.json").read_text())
        own = results["methods"][paper["method"]]
        mean = sum(own["pairs"].values()) / len(own["pairs"])
        assert own["mean"] == pytest.approx(mean, abs=0.051)
        assert f"**{own['mean']:.1f}**" in next(line for line in lines if line.startswith(f"| {name} |"))
        if own["published"]:
            assert str(paper["published"]) == str(own["published_mean"])
    nearest = results["methods"]["1-NN"]
    assert nearest["pairs"] == nearest["published"]


def test_rows_over_seeds_stand_beside_their_twins(ledger):
    papers = {name: paper for name, paper in ledger.published().items() if "seeds" in paper}
    assert {"mnist-m-dann", "digits-dann"} <= set(papers)
    lines = ledger.ledger().splitlines()
    for name, paper in papers.items():
        runs = json.loads((FOLDER / "results" / f"{paper['seeds']}.json").read_text())["methods"][paper["method"]]
        assert len(runs) >= 3
        line = next(line for line in lines if line.startswith(f"| {name} |"))
        for key in ("adapted", "source only"):
            assert f"{100 * sum(run[key] for run in runs.values()) / len(runs):.2f}" in line


def test_rows_of_scores_are_the_correlations_of_their_table(ledger):
    papers = {name: paper for name, paper in ledger.published().items() if "scores" in paper}
    assert {"h_score", "log_me", "leep", "nce"} <= {paper["function"] for paper in papers.values()}
    lines = ledger.ledger().splitlines()
    for name, paper in papers.items():
        results = json.loads((FOLDER / "results" / f"{paper['scores']}.json").read_text())
        assert len(results["targets"]) >= 5
        found = []
        for rows in results["targets"].values():
            assert len(rows) >= 6
            accuracy = [np.mean(row["accuracy"]) for row in rows.values()]
            found.append(np.corrcoef([row["scores"][paper["method"]] for row in rows.values()], accuracy)[0, 1])
        assert f"**{np.mean(found):.3f}**" in next(line for line in lines if line.startswith(f"| {name} |"))


def test_a_run_is_taken_in(ledger, tmp_path, monkeypatch, capsys):
    name = next(iter(ledger.published()))
    results = json.loads((tmp_path / "results" / f"{name}.json").read_text())
    results["metrics"]["accuracy"] = {"value": 0.5, "ci95": 0.01}
    fresh = tmp_path / "results.json"
    fresh.write_text(json.dumps(results | {"checkpoint": "/somewhere/best.ckpt", "file": "/somewhere/results.json"}))
    monkeypatch.setattr(sys, "argv", ["ledger.py", "add", name, str(fresh)])
    ledger.main()
    text = (tmp_path / "LEDGER.md").read_text()
    assert "**50.00 ± 1.00**" in text
    assert "somewhere" not in (tmp_path / "results" / f"{name}.json").read_text()
    assert f"{len(ledger.published())} rows" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("stage", "name", "words"),
    [("fit", None, "the ledger holds tests"), ("test", "other-row", "published.yaml has no")],
)
def test_what_does_not_belong(ledger, tmp_path, stage, name, words):
    (tmp_path / "r.json").write_text(json.dumps({"stage": stage}))
    with pytest.raises(SystemExit, match=words):
        ledger.add(name or next(iter(ledger.published())), tmp_path / "r.json")


def test_a_row_without_its_run(ledger, tmp_path):
    rows = ledger.published() | {"lost": {"published": 1, "source": "", "command": "", "note": ""}}
    (tmp_path / "published.yaml").write_text(yaml.safe_dump(rows))
    with pytest.raises(SystemExit, match=r"results/lost\.json is missing"):
        ledger.ledger()
