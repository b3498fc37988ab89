"""The selector of strategies: what it learns, its reasons and doubts, and what is saved."""

from __future__ import annotations

import json

import numpy as np
import pytest

from messages import keep
from metatransfer import UserError
from metatransfer.experiments.knowledge import Knowledge
from metatransfer.experiments.selector import StrategySelector

METHODS = ("steady", "left", "right", "poor")


def table(tasks=40, seed=0):
    """Method left is best where the feature x is negative, right where it is positive; steady is second best."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(tasks, 3))
    x = values[:, 0]
    scores = np.stack([0.7 + 0 * x, np.where(x < 0, 0.9, 0.4), np.where(x < 0, 0.4, 0.9), 0.2 + 0 * x], 1)
    scores = scores + rng.normal(size=scores.shape) * 0.01
    return Knowledge(tuple(f"task{t}" for t in range(tasks)), ("x", "noise", "more"), METHODS, values, scores)


def fitted(kind="pairwise", **changes):
    return StrategySelector(kind, candidates=3, num_trees=20, **changes).fit(table())


@pytest.mark.parametrize("kind", ["pairwise", "regression"])
def test_every_kind_closes_the_gap(kind):
    new = table(60, seed=1)
    selector = fitted(kind)
    places = [METHODS.index(name) for name in selector.choose(new.values)]
    reached = new.scores[np.arange(60), places].mean()
    single, oracle = new.scores.mean(0).max(), new.scores.max(1).mean()
    assert (reached - single) / (oracle - single) > 0.8
    assert selector.single_best_ == "steady"


def test_an_answer_has_reasons():
    found = fitted().predict({"x": 1.0, "noise": 0.0, "more": 0.0})
    assert [one.name for one in found.ranking] == ["right", "steady", "left", "poor"]
    assert found.ranking[0].score == pytest.approx(0.9, abs=0.1)
    assert np.isnan(found.ranking[-1].votes)  # no candidate
    assert found.telling[0][0] == "x"
    known = table()
    assert found.telling[0][3] == (known.values[:, 0] < 1).mean()
    assert found.nearest[0][2] == "right"
    assert found.nearest[0][1] <= found.nearest[1][1] <= found.nearest[2][1]
    assert found.doubts == ()


def test_doubts():
    selector = fitted()
    assert "far from every known one" in selector.predict([500.0, -500.0, 500.0]).doubts[0]
    # the winner is noise: a gain over the method that is best on average is smaller than the spread
    rng = np.random.default_rng(0)
    noise = Knowledge(tuple("abcdefghij"), ("x",), ("a", "b"), rng.normal(size=(10, 1)), rng.normal(size=(10, 2)))
    selector = StrategySelector(num_trees=20).fit(noise)
    answers = [selector.predict([x]) for x in np.linspace(-1, 1, 9)]
    doubted = [one for one in answers if "smaller than the spread" in " ".join(one.doubts)]
    assert doubted
    assert all(one.ranking[0].name != selector.single_best_ for one in doubted)


@pytest.mark.parametrize("kind", ["pairwise", "regression"])
def test_missing_scores_and_features(kind):
    known = table()
    scores, values = known.scores.copy(), known.values.copy()
    scores[::5, 1], values[::7, 1] = np.nan, np.nan
    selector = StrategySelector(kind, 3, 20).fit(Knowledge(known.tasks, known.features, METHODS, values, scores))
    assert selector.choose([[-1.0, np.nan, 0.0], [1.0, 0.0, 0.0]]) == ["left", "right"]


def test_features_that_a_task_lacks_are_no_reason():
    """The feature x decides, but the values that were put in its place say nothing on a task without it."""
    known, selector = table(), fitted()
    assert selector.predict([5.0, 0.1, 0.2]).telling[0][0] == "x"
    found = selector.predict([np.nan, 0.1, 0.2])
    assert {one[0] for one in found.telling} == {"noise", "more"}
    # the distances are those of the other features, in units of their interquartile range
    compressed = np.sign(known.values) * np.log1p(np.abs(known.values))
    scale = np.subtract(*np.quantile(compressed, [0.75, 0.25], axis=0))
    expected = (np.abs(compressed - np.log1p([0.0, 0.1, 0.2])) / scale)[:, 1:].mean(1)
    assert found.nearest[0][0] == known.tasks[expected.argmin()]
    assert found.nearest[0][1] == pytest.approx(expected.min(), rel=1e-12)
    assert "far from every known one" in selector.predict([np.nan, 500.0, -500.0]).doubts[0]


def test_saved_and_loaded_answers_are_equal_in_every_bit(tmp_path):
    known = table()
    known.values[3, 1] = known.scores[4, 2] = np.nan
    selector = StrategySelector("pairwise", 3, 20, seed=5).fit(known)
    selector.save(tmp_path / "knowledge.json")
    other = StrategySelector.load(tmp_path / "knowledge.json")
    assert np.array_equal(other.knowledge_.values, known.values, equal_nan=True)
    assert np.array_equal(other.knowledge_.scores, known.scores, equal_nan=True)
    for x in np.random.default_rng(2).normal(size=(3, 3)):
        assert repr(other.predict(x)) == repr(selector.predict(x))
    assert set(json.loads((tmp_path / "knowledge.json").read_text())) == {"format", "settings", "knowledge"}


def needy():
    """Left and right need images, and poor was run on the first half only."""
    known = table()
    scores = known.scores.copy()
    scores[20:, 3] = np.nan
    needs = {"left": ("images",), "right": ("images",), "poor": ("images", "classes")}
    return Knowledge(known.tasks, known.features, METHODS, known.values, scores, needs, "Measured here.")


def test_methods_that_the_data_do_not_allow_are_left_out(tmp_path):
    images = needy().usable(["images"])
    assert images.methods == ("steady", "left", "right")
    assert len(images.tasks) == 40
    everything = needy().usable(["images", "classes"])
    assert everything.methods == METHODS
    assert everything.tasks == table().tasks[:20]  # on which all were run
    assert np.array_equal(everything.scores, needy().scores[:20])
    StrategySelector(candidates=3, num_trees=5).fit(needy()).save(tmp_path / "k.json")
    loaded = StrategySelector.load(tmp_path / "k.json", ["images"])
    assert loaded.knowledge_.methods == images.methods
    assert loaded.knowledge_.needs == {"left": ("images",), "right": ("images",)}
    assert loaded.knowledge_.about == "Measured here."
    assert {one.name for one in loaded.predict([1.0, 0.0, 0.0]).ranking} == set(images.methods)
    # what was left out is not lost
    loaded.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "k.json").read_bytes()
    whole = StrategySelector.load(tmp_path / "again.json").knowledge_
    assert whole.methods == METHODS
    assert whole.tasks == table().tasks
    assert table().usable([]).methods == METHODS  # nothing is needed


def broken(**changes):
    known = table()
    names = ("tasks", "features", "methods", "values", "scores")
    return Knowledge(**{name: changes.get(name, getattr(known, name)) for name in names})


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: StrategySelector("forest"), "kind must be one of"),
        (lambda: StrategySelector(candidates=1), "candidates must be"),
        (lambda: StrategySelector().predict([1.0]), "not fitted"),
        (lambda: fitted().predict([1.0]), "needs 3 features"),
        (lambda: fitted().predict({"x": 1.0, "more": 0.0}), "'noise' is missing"),
        (lambda: fitted().predict([np.inf, 0.0, 0.0]), "infinite"),
        (lambda: fitted().predict([np.nan] * 3), "all features of the task are NaN"),
        (lambda: broken(methods=("a", "b", "c", "a")), "'a' appears twice"),
        (lambda: broken(methods=("a", "b")), "scores must have shape (40, 2)"),
        (lambda: broken(scores=np.full((40, 4), np.inf)), "infinite number"),
        (lambda: broken(scores=np.full((40, 4), np.nan)), "no score for 'task0'"),
        (lambda: table(4), "at least 5 tasks"),
        (lambda: needy().usable([]), "1 method for such data and 40 tasks"),
        (lambda: needy().subset(np.arange(18, 40)).usable(["images", "classes"]), "2 tasks on which all"),
    ],
)
def test_mistakes(call, words):
    with pytest.raises(UserError) as error:
        call()
    assert words in keep(str(error.value))


@pytest.mark.parametrize("text", ["{", "[1]", '{"settings": {}}', '{"settings": {"trees": 1}, "knowledge": {}}'])
def test_a_wrong_file_is_one_sentence(tmp_path, text):
    (tmp_path / "k.json").write_text(text)
    with pytest.raises(UserError, match=r"make it with StrategySelector\.save"):
        StrategySelector.load(tmp_path / "k.json")
    with pytest.raises(UserError, match="does not exist"):
        StrategySelector.load(tmp_path / "j.json")


@pytest.mark.parametrize(("part", "row"), [("values", ["text", 0.0, 0.0]), ("scores", [1.0]), ("format", 99)])
def test_an_edited_file_is_one_sentence(part, row, tmp_path):
    fitted().save(tmp_path / "k.json")
    content = json.loads((tmp_path / "k.json").read_text())
    if part == "format":
        content["format"] = row
    else:
        content["knowledge"][part][3] = row
    (tmp_path / "k.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"^[^\n]*make it with StrategySelector\.save\.$"):
        StrategySelector.load(tmp_path / "k.json")
