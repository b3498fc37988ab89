"""Distances between tasks."""

from __future__ import annotations

import pytest
import torch

from messages import keep
from metatransfer import MLP, Conv4
from metatransfer.adapters import Labelled
from metatransfer.errors import UserError
from metatransfer.experiments.similarity import MEASURES, ProbedTask, converted, distances
from metatransfer.functional.domain.discrepancy import mmd


def rows(shift=0.0, seed=0, n=40, classes=2):
    """Rows of four numbers whose classes differ."""
    make = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    return Labelled(torch.randn(n, 4, generator=make) + 3 * torch.nn.functional.one_hot(y, 4) + shift, y)


def bars(turned=False, seed=0, n=16, channels=1, side=28):
    """Images of a bar at one of two places, upright or lying."""
    make = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    x = 0.1 * torch.rand(n, channels, side, side, generator=make)
    for place, label in enumerate(y.tolist()):
        x[place, :, :, side // 4 + label * side // 2] = 1
    return Labelled(x.transpose(2, 3) if turned else x, y)


def test_every_measure_finds_the_nearer_task():
    tasks = {"here": rows(), "near": rows(0.5, 1), "far": rows(6.0, 2, classes=3)}
    measures = [name for name in MEASURES if name not in {"task2vec", "nce", "leep"}]
    for name, matrix in distances(tasks, measures).items():
        assert matrix.dtype == torch.float64
        assert matrix.shape == (3, 3)
        torch.testing.assert_close(matrix, matrix.T)
        assert matrix.diag().tolist() == [0, 0, 0]
        assert float(matrix[0, 1]) < float(matrix[0, 2]), name


@pytest.mark.parametrize("name", [name for name, measure in MEASURES.items() if measure.symmetric])
def test_a_symmetric_measure_is_the_same_in_both_directions(name):
    """Of which only one is computed."""
    torch.manual_seed(0)
    backbone = MLP((4,), (8,)).eval()
    one, other = ProbedTask(rows(), backbone), ProbedTask(rows(0.5, 1, n=33, classes=3), backbone)
    there, back = (float(MEASURES[name].between(*pair, 10.0)) for pair in ((one, other), (other, one)))
    assert there == pytest.approx(back, rel=1e-6)
    assert there > 1e-3


def test_the_network_of_the_user_keeps_its_mode():
    """Also after an error; frozen parts stay in evaluation mode."""
    backbone = Conv4(hidden_channels=4).train()
    next(backbone.children()).eval()
    modes = [part.training for part in backbone.modules()]
    distances({"a": bars(), "b": bars(True)}, ["mmd"], backbone)
    assert [part.training for part in backbone.modules()] == modes
    with pytest.raises(UserError, match="samples of shape"):
        distances({"a": bars(), "b": rows()}, ["mmd"], backbone)
    assert [part.training for part in backbone.modules()] == modes


def test_leep_and_nce_have_a_direction():
    tasks = {"four": rows(n=80, classes=4), "two": Labelled(rows(n=80, classes=4, seed=1).x, torch.arange(80) % 4 // 2)}
    for name, matrix in distances(tasks, ["leep", "nce"]).items():
        assert float(matrix[0, 1]) < float(matrix[1, 0]), name  # four classes tell the two apart, but not the reverse
        assert bool((matrix >= 0).all()), name


def test_one_kernel_for_all_pairs():
    tasks = {"a": rows(), "b": rows(1.0, 1), "c": rows(20.0, 2)}
    everything = torch.cat([task.x for task in tasks.values()]).double()
    scale = float(torch.pdist(everything).square().median())
    found = distances(tasks, ["mmd"])["mmd"]
    assert float(found[0, 1]) == pytest.approx(float(mmd(tasks["a"].x, tasks["b"].x, scale=scale)), rel=1e-3)


def test_task_embeddings_are_nearer_for_the_same_task():
    torch.manual_seed(0)
    tasks = {"upright": bars(), "again": bars(seed=1), "lying": bars(turned=True, seed=2)}
    backbone = Conv4(hidden_channels=4)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    found = distances(tasks, ["task2vec"], backbone)["task2vec"]
    assert float(found[0, 1]) < float(found[0, 2])
    assert bool((found <= 1).all())
    torch.testing.assert_close(found, distances(tasks, ["task2vec"], backbone)["task2vec"])
    drawn = distances(tasks, ["task2vec"], backbone, draws=1, seed=1)["task2vec"]
    assert 0 < float((drawn - found).abs().max()) < 0.3
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_images_are_converted_to_the_network():
    network = Conv4(hidden_channels=4)
    assert converted(bars(channels=3, side=40).x, network, "a").shape == (16, 1, 28, 28)
    assert converted(bars().x, Conv4(3, 32, 4), "a").shape == (16, 3, 32, 32)
    assert converted(bars().x, network, "a").shape == (16, 1, 28, 28)
    found = distances(
        {"small": bars(), "large": bars(channels=3, side=56, seed=1), "other": bars(turned=True)}, ["mmd"]
    )
    assert float(found["mmd"][0, 1]) < float(found["mmd"][0, 2])


@pytest.mark.parametrize(
    ("tasks", "measures", "words"),
    [
        ({"a": rows()}, ["mmd"], "two or more data sets"),
        ({"a": rows(), "b": rows()}, ["task2wec"], "Did you mean task2vec?"),
        ({"a": rows(), "b": rows()}, [], "Known: task2vec"),
        ({"a": rows(), "b": bars()}, ["mmd"], "'b' has samples of shape (1, 28, 28)"),
        ({"a": rows(), "b": rows()}, ["task2vec"], "RawFeatures has none"),
    ],
)
def test_what_cannot_be_compared(tasks, measures, words):
    with pytest.raises(UserError) as caught:
        distances(tasks, measures)
    assert words in keep(str(caught.value))
