"""Pictures of domains: what is in them, and that odd inputs are drawn or refused in a sentence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgba

from metatransfer.drawing.classifiers import gain_figure
from metatransfer.drawing.domains import (
    Embedded,
    domain_curves_figure,
    embed,
    embedding_figure,
)
from metatransfer.drawing.episodes import to_pixels


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def domains(n=40, m=30, classes=3, seed=0):
    y, target_y = torch.arange(n) % classes, torch.arange(m) % classes
    means = 9 * torch.eye(classes, 6)
    return means[y] + normal(n, 6, seed=seed), means[target_y] + normal(m, 6, seed=seed + 1) + 1, y, target_y


def plane(n=20, m=15, classes=3, known=True):
    labels = torch.arange(m) % classes if known else None
    return Embedded(normal(n, 2), normal(m, 2, seed=1), torch.arange(n) % classes, labels)


def texts(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_principal_components_are_those_of_both_domains():
    source, target, y, target_y = domains()
    found = embed(source, target, y, target_y, "pca")
    both = torch.cat([source, target]).double().numpy()
    values, vectors = np.linalg.eigh(np.cov(both.T))
    expected = (both - both.mean(0)) @ vectors[:, ::-1][:, :2]
    points = torch.cat([found.source, found.target]).numpy()
    np.testing.assert_allclose(np.abs(points), np.abs(expected), atol=1e-8)
    assert values[-1] == pytest.approx(points[:, 0].var(ddof=1))
    assert torch.equal(found.source_y, y)
    assert torch.equal(found.target_y, target_y)


def test_neighbours_keep_classes_together_and_are_the_same_every_time():
    source, target, y, target_y = domains()
    found = embed(source, target, y, target_y, "tsne", seed=3)
    again = embed(source, target, y, target_y, "tsne", seed=3)
    assert torch.equal(found.source, again.source)
    assert torch.equal(found.target, again.target)
    points, labels = torch.cat([found.source, found.target]), torch.cat([y, target_y])
    distances = torch.cdist(points, points).fill_diagonal_(torch.inf)
    assert (labels[distances.argmin(1)] == labels).double().mean() > 0.95


def test_of_many_samples_some_are_drawn_with_their_labels():
    x, y = torch.arange(1200.0)[:, None].repeat(1, 2), torch.arange(1200)
    x[:, 1] = 0
    found = embed(x, x[:700], y, None, "pca")
    assert found.source.shape == found.target.shape == (500, 2)
    assert len(set(found.source_y.tolist())) == 500
    place = found.source[:, 0] * (found.source[1, 0] - found.source[0, 0]).sign()
    torch.testing.assert_close(place - place[0], (found.source_y - found.source_y[0]).double())
    assert found.target_y is None
    other = embed(x, x[:700], y, None, "pca", seed=1)
    assert not torch.equal(other.source_y, found.source_y)


@pytest.mark.parametrize("method", ["pca", "tsne"])
@pytest.mark.parametrize(
    ("source", "target"),
    [
        (normal(1, 4), normal(1, 4, seed=1)),
        (normal(9, 1), normal(2, 1, seed=1)),
        (torch.ones(9, 3), torch.ones(9, 3)),
        (normal(6, 2, 3, 3), normal(5, 2, 3, 3, seed=1)),
        (normal(8, 90), normal(9, 90, seed=1)),
    ],
    ids=["two samples", "one feature", "one point", "maps", "many features"],
)
def test_odd_features_are_embedded(method, source, target):
    found = embed(source, target, torch.zeros(len(source), dtype=torch.int64), None, method)
    assert found.source.shape == (len(source), 2)
    assert found.target.shape == (len(target), 2)
    assert torch.cat(found[:2]).isfinite().all()


def test_colours_are_classes_and_marks_are_domains():
    figure = embedding_figure(plane(), plane(known=False), ["cat", "$dog", "a long name of a class indeed"])
    assert texts(figure) == ["source", "target, class unknown", "cat", r"\$dog", "a long name of…indeed"]
    left, right = figure.axes
    assert (left.get_title(), right.get_title()) == ("before adaptation", "after adaptation")
    circles, crosses = left.collections
    assert len(circles.get_offsets()) == 20
    assert len(crosses.get_offsets()) == 15
    np.testing.assert_allclose(circles.get_edgecolors()[:15], crosses.get_facecolors())
    assert len(np.unique(circles.get_edgecolors(), axis=0)) == 3
    np.testing.assert_allclose(np.unique(right.collections[1].get_facecolors(), axis=0), [to_rgba("#9e9e9e")])
    assert to_pixels(figure).std() > 5


@pytest.mark.parametrize(("classes", "entries"), [(2, 4), (10, 12), (31, 3)])
def test_any_number_of_classes_has_a_legend(classes, entries):
    part = plane(80, 70, classes)
    figure = embedding_figure(part, part)
    assert len(texts(figure)) == entries
    shades = figure.axes[0].collections[0].get_edgecolors()
    assert len(np.unique(shades, axis=0)) == classes
    assert to_rgba("#9e9e9e") not in {tuple(shade) for shade in shades}
    pixels = to_pixels(figure)
    assert 300 < min(pixels.shape[:2]) < max(pixels.shape[:2]) < 1400


def test_classes_of_the_target_alone_and_unknown_labels():
    part = plane()
    odd = part._replace(target_y=torch.tensor([7, -1] + [0] * 13))
    figure = embedding_figure(part, odd)
    assert texts(figure) == ["source", "target, class unknown", "class 0", "class 1", "class 2", "class 7"]


def test_gains():
    scores = {"source only": [50.0, 54.0], "DANN": [60.0, 63.0], "labels of the target": [90.0, 92.0]}
    figure = gain_figure(scores, "adaptation is worth +9.5 points")
    axis = figure.axes[0]
    assert "+9.5 points" in axis.get_title()
    drawn = [list(line.get_ydata()) for line in axis.lines]
    assert all(one in drawn for one in ([50, 60, 90], [54, 63, 92], [52, 61.5, 91]))
    assert {line.get_linestyle() for line in axis.lines} == {"None"}, "there is nothing between two ways to train"
    assert all(0 <= end[1] <= 100 for bar in axis.containers[0][2] for part in bar.get_segments() for end in part)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one seed", "mean of 2 seeds, 95 % interval"]
    assert to_pixels(figure).std() > 5


def test_curves():
    steps = list(range(0, 100, 10))
    ratio = [1e-3, 1e-2, float("nan"), 0.1, 1, 2, 3, float("inf"), 5, 6]
    accuracy = [0.9, 0.8, 0.2, 0.7, 0.6, 0.6, 0.6, 0.5, 0.5, 0.5]
    figure = domain_curves_figure(
        steps, {"λ": [0.1] * 10, "discriminator accuracy": accuracy, "gradient ratio": ratio}, chance=0.6
    )
    strength, discriminator, gradients = figure.axes
    assert [axis.get_ylabel() for axis in figure.axes] == ["λ", "discriminator accuracy", "gradient ratio"]
    assert strength.lines[0].get_ydata().tolist() == [0.1] * 10
    assert discriminator.lines[1].get_ydata() == [0.6, 0.6]
    assert discriminator.get_legend().get_texts()[0].get_text() == "chance (60 %)"
    assert discriminator.get_ylim()[0] < 0.2
    assert gradients.get_yscale() == "log"
    assert np.isnan(gradients.lines[0].get_ydata()).sum() == 2
    assert gradients.get_xlabel() == "optimiser step"
    assert to_pixels(figure).std() > 5


@pytest.mark.parametrize(
    "ratio", [[0.0, 0.0, 100.0], [float("nan")] * 3, [1.0, 2.0, 3.0]], ids=["zeros", "no number", "narrow"]
)
def test_what_is_not_logged_is_not_drawn(ratio):
    figure = domain_curves_figure([1, 2, 3], {"gradient ratio": ratio})
    assert len(figure.axes) == 1
    assert figure.axes[0].get_yscale() == "linear"
    assert to_pixels(figure).std() > 5
