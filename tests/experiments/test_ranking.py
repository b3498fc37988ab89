"""Order, ties and the sentence of a comparison; budgets in words."""

from __future__ import annotations

import json
import zlib

import pytest
import torch
from lightning.pytorch.callbacks import Timer

import messages
from metatransfer.errors import UserError
from metatransfer.experiments.budgets import TrainingBudget
from metatransfer.experiments.ranking import Outcome, check_units, contents, rank, sentence


def outcomes(name, mean, *, seeds=3, units=40, key="same", noise=0.05, **more):
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return [
        Outcome(name, seed, (mean + noise * torch.randn(units, generator=generator)).tolist(), key, **more)
        for seed in range(seeds)
    ]


def test_the_order_and_a_clear_winner():
    ranking = rank({"low": outcomes("low", 0.3), "high": outcomes("high", 0.8), "mid": outcomes("mid", 0.5)})
    assert ranking.order == ["high", "mid", "low"]
    assert ranking.crossed
    assert ranking.groups() == []
    pair = ranking.pairs["high", "mid"]
    assert pair.mean == pytest.approx(0.3, abs=0.03)
    assert not pair.tied
    assert "'high' is best" in sentence(ranking)
    json.dumps(contents(ranking), allow_nan=False)


def test_ties_are_marked_and_joined():
    same = outcomes("one", 0.8)
    again = [Outcome("two", one.seed, [value - 1e-6 for value in one.scores[::-1]], "same") for one in same]
    ranking = rank({"low": outcomes("low", 0.3), "one": same, "two": again})
    assert ranking.order[:2] == ["one", "two"]
    assert ranking.tied_with_best("two")
    assert not ranking.tied_with_best("low")
    assert ranking.groups() == [["one", "two"]]
    assert "not significant (tie)" in sentence(ranking)


def test_a_failure_is_a_row_and_not_ranked():
    bad = [Outcome("bad", 0, failure="it failed."), *outcomes("bad", 0.9)[1:]]
    ranking = rank({"bad": bad, "good": outcomes("good", 0.5)})
    assert ranking.order == ["good"]
    assert ranking.failures == {"bad": "it failed."}
    assert rank({"bad": bad}).order == []
    assert sentence(rank({"bad": bad})) == "No method can be ranked: all of them failed."


def test_a_baseline_at_the_top_is_said():
    ranking = rank({"1-NN": outcomes("1-NN", 0.9, baseline=True), "method": outcomes("method", 0.5)})
    assert sentence(ranking).startswith("No method is better than the baseline '1-NN'")


def test_each_seed_may_have_its_own_samples():
    one = [Outcome("one", seed, [1.0] * (10 + seed) + [0.0] * 5, f"of {seed}") for seed in range(3)]
    two = [Outcome("two", seed, [1.0] * 8 + [0.0] * (7 + seed), f"of {seed}") for seed in range(3)]
    ranking = rank({"one": one, "two": two})
    assert not ranking.crossed
    by_hand = torch.tensor([a.mean - b.mean for a, b in zip(one, two, strict=True)], dtype=torch.float64)
    pair = ranking.pairs["one", "two"]
    assert pair.mean == pytest.approx(float(by_hand.mean()))
    assert pair.half == pytest.approx(4.302653 * float(by_hand.std()) / 3**0.5, rel=1e-6)


def test_other_samples_are_noticed():
    results = {"one": outcomes("one", 0.5), "two": outcomes("two", 0.5, key="others")}
    assert list(check_units(results)) == ["two"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("10m", (600.0, None)), ("90s", (90.0, None)), ("1.5 h", (5400.0, None)), ("500steps", (None, 500))],
)
def test_budgets(text, expected):
    assert TrainingBudget.parse(text) == expected


def test_the_trainer_gets_the_limits():
    assert TrainingBudget.parse("90s").limits() == {"max_time": "00:00:01:30"}
    assert TrainingBudget.parse("1.5h").limits() == {"max_time": "00:01:30:00"}
    assert TrainingBudget.parse("50h").limits() == {"max_time": "02:02:00:00"}
    assert Timer("02:02:00:00").time_remaining() == 50 * 3600
    steps = TrainingBudget.parse("500steps").limits()
    assert (steps["max_steps"], steps["max_epochs"], steps["val_check_interval"]) == (500, -1, 50)


@pytest.mark.parametrize(
    ("steps", "every"), [(3, 1), (10, 1), (19, 1), (505, 101), (70, 7), (64, 8), (36, 4), (23, 2), (100, 10)]
)
def test_the_last_of_the_validations_is_at_the_end_where_it_can_be(steps, every):
    assert TrainingBudget(steps=steps).limits()["val_check_interval"] == every


@pytest.mark.parametrize("text", ["", "10", "m", "0s", "-5m", "2.5steps", "10 parsecs"])
def test_what_is_no_budget(text):
    with pytest.raises(UserError, match="must be a time such as 10m") as caught:
        TrainingBudget.parse(text)
    assert f"'{text}'" in messages.keep(str(caught.value))
