"""Which arguments are searched: what is given, what follows from an entry, mistakes."""

from __future__ import annotations

import re

import pytest
import yaml

import messages
from conftest import ROOT
from metatransfer.cli.entries import Candidate
from metatransfer.cli.entry_run import Job, configured
from metatransfer.cli.search_space import (
    as_arguments,
    as_text,
    as_value,
    configured_values,
    inside,
    read_options,
    spaces_of,
    value_at,
)
from metatransfer.errors import UserError


def jobs(*texts):
    """The jobs of some entries on Glyphs."""
    found = {}
    for text in texts:
        one = Candidate.parse(text)
        data = {"class_path": "EpisodicDataModule", "init_args": {"source": "Glyphs"}}
        found[one.name] = Job(one.name, "tuning", configured(one, data, 0, {}, {}), one.arguments, 0, ROOT)
    return found


def test_learning_rates_are_searched_around_those_of_the_configuration():
    found = spaces_of(jobs("maml --model.optimizer.lr 0.02", "protonet", "frozen_features"), None)
    maml = found["maml --model.optimizer.lr 0.02"]
    assert maml["model.optimizer.lr"] == {"low": pytest.approx(0.002), "high": pytest.approx(0.2), "log": True}
    assert maml["model.inner.lr"] == {"low": pytest.approx(0.04), "high": pytest.approx(4.0), "log": True}
    assert maml["model.optimizer.weight_decay"] == [0.0, 1e-5, 1e-4, 1e-3, 1e-2]
    assert sorted(found["protonet"]) == ["model.optimizer.lr", "model.optimizer.weight_decay"]
    assert found["frozen_features"] == {}


def test_the_configured_weight_decay_is_searched(tmp_path):
    one = "protonet --model.optimizer.weight_decay 0.3"
    assert spaces_of(jobs(one), None)[one]["model.optimizer.weight_decay"] == [0.0, 1e-5, 1e-4, 1e-3, 1e-2, 0.3]


def test_a_given_space_is_for_the_entries_that_have_its_arguments():
    given = {"model.inner.steps": {"low": 1, "high": 3}, "model.backbone.hidden_channels": [4, 8]}
    found = spaces_of(jobs("maml", "protonet"), given)
    assert found["maml"] == given
    assert found["protonet"] == {"model.backbone.hidden_channels": [4, 8]}


def test_what_is_not_searched_for_an_entry_is_told(capsys):
    spaces_of(jobs("maml", "protonet"), {"model.inner.steps": [1], "model.optimizer.lr": [0.1]})
    (line,) = capsys.readouterr().out.splitlines()
    assert messages.keep(line).startswith("protonet: model.inner.steps is not tuned: ")


@pytest.mark.parametrize(
    ("configured", "values", "expected"),
    [(0.0, [0, 0.1], "0"), (1, [1.0], "1.0"), (True, [2, 1], "1"), (True, [1, True], "true"), ("a", ["b", "a"], "a")],
)
def test_a_configured_value_is_the_equal_one_of_a_list(configured, values, expected, monkeypatch):
    monkeypatch.setattr("metatransfer.cli.search_space.settings_of", lambda _: {"model": {"x": configured}})
    assert configured_values(None, {"model.x": values}) == {"model.x": expected}


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"model.inner.stepps": [1, 2]}, "stepps"),
        ({"model.distance": ["euclidean", "euclidian"]}, "Did you mean euclidean?"),
        ({"model.optimizer.lr": {"low": "slow", "high": 1.0}}, "must be a number"),
    ],
)
def test_arguments_that_no_entry_accepts(space, words):
    with pytest.raises(UserError) as error:
        spaces_of(jobs("protonet"), space)
    message = messages.keep(str(error.value))
    assert "tune.space: no entry accepts" in message
    assert words in message


# ---- what is given


def test_a_space_is_a_file_or_arguments(tmp_path):
    (tmp_path / "space.yaml").write_text("model.optimizer.lr: {low: 1e-4, high: 1e-1, log: true}\nmodel.x: [1, a]\n")
    expected = {"model.optimizer.lr": {"low": 1e-4, "high": 0.1, "log": True}, "model.x": [1, "a"]}
    assert read_options({"trials": "20", "space": str(tmp_path / "space.yaml")}) == (20, expected)
    typed = {"space/model/optimizer/lr": "{low: 1e-4, high: 1e-1, log: true}", "space/model/x": "[1, a]"}
    assert read_options({"trials": "20", **typed}) == (20, expected)
    assert read_options(7) == (7, None)


def test_the_space_of_the_documentation():
    (block,) = re.findall(r"```yaml\n# space.yaml\n(.*?)```", (ROOT / "docs" / "compare.md").read_text(), re.DOTALL)
    trials, space = read_options({"trials": 20, "space": yaml.safe_load(block)})
    found = spaces_of(jobs("maml", "protonet"), space)
    assert trials == 20
    assert found["maml"] == space
    assert found["protonet"]


@pytest.mark.parametrize(
    "given",
    [
        0, "x", 1.5, {"trials": 0}, {"space": "space.yaml"}, {"trials": 3, "spaces": "space.yaml"},
        {"trials": 3, "space": "nowhere.yaml"}, {"trials": 3, "space": {}}, {"trials": 3, "space": [1]},
        {"trials": 3, "space": {"model.x": 3}}, {"trials": 3, "space": {"model.x": []}},
        {"trials": 3, "space": {"model.x": {"low": 1}}}, {"trials": 3, "space": {"model.x": {"lo": 1, "high": 2}}},
        {"trials": 3, "space": {"model.x": {"low": "a", "high": "b"}}},
        {"trials": 3, "space": {"data.seed": [0, 1]}}, {"trials": 3, "space": {"trainer.max_steps": [1, 2]}},
    ],
)  # fmt: skip
def test_mistakes(given):
    with pytest.raises(UserError) as error:
        read_options(given)
    messages.keep(str(error.value))


def test_a_file_that_is_no_space(tmp_path):
    (tmp_path / "space.yaml").write_text("a: [1\n")
    with pytest.raises(UserError, match=r"is not a YAML file"):
        read_options({"trials": 3, "space": str(tmp_path / "space.yaml")})


# ---- values


@pytest.mark.parametrize("value", [1, 1e-5, "cosine", None, True, [64, 64], {"class_path": "SGD"}])
def test_values_as_texts(value):
    assert as_value(as_text(value)) == value


def test_values_as_arguments():
    values = {"model.a": 1e-5, "model.b": "x", "model.c": None, "model.d": [1, 2]}
    assert as_arguments(values) == ("--model.a=1e-05", "--model.b=x", "--model.c=null", "--model.d=[1, 2]")


def test_where_a_value_is():
    settings = {"model": {"class_path": "A", "init_args": {"b": {"init_args": {"lr": 2.0}}, "c": None}}}
    assert value_at(settings, "model.b.lr") == 2.0
    assert value_at(settings, "model.c.d") is value_at(settings, "model.e") is None


def test_which_values_are_searched():
    assert inside(2, [1, 2])
    assert not inside(3, [1, 2])
    assert inside(0.5, {"low": 0.5, "high": 1.0})
    assert not inside(2, {"low": 0.5, "high": 1.0})
    assert not inside(None, {"low": 0.5, "high": 1.0})
