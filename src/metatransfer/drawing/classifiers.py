"""Figures of a classifier's predictions."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

_LABELLED = 30  # more classes leave no space for names and numbers


def confusion_figure(confusion: Tensor, names: Sequence[str]) -> Figure:
    """A confusion matrix: rows are true classes, columns predicted classes; colours are fractions of the row."""
    counts = confusion.cpu().numpy()
    parts = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    few = len(names) <= _LABELLED
    side = min(12.0, max(4.0, 0.45 * len(names) + 1.5)) if few else 8.0
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(parts, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axis, label="fraction of the class", shrink=0.8)
    axis.set(xlabel="predicted class", ylabel="true class")
    if few:
        ticks = range(len(names))
        short = [_plain(textwrap.shorten(name, 22, placeholder="…")) for name in names]
        axis.set_xticks(ticks, short, rotation=45 if max(map(len, short)) > 2 else 0, ha="right")
        axis.set_yticks(ticks, short)
        if max(map(len, short)) <= 2:
            axis.set_xticks(ticks, short, ha="center")
        for (row, column), count in np.ndenumerate(counts):
            if count:
                color = "white" if parts[row, column] > 0.5 else "black"
                axis.text(column, row, str(count), ha="center", va="center", fontsize=7, color=color)
    return figure


def _plain(text: str) -> str:
    """Escapes dollar signs, between which matplotlib expects formulas, and letters that are not valid Unicode."""
    return text.replace("$", r"\$").encode("utf-8", "replace").decode()


def calibration_figure(count: Tensor, right: Tensor, confidence: Tensor, error: float) -> Figure:
    """A reliability diagram: accuracy by confidence, and the number of predictions by confidence."""
    number, good, sure = (part.cpu().numpy() for part in (count, right, confidence))
    filled = number > 0
    figure = Figure(figsize=(5.0, 5.0), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 1], [0, 1], "--", color="#6d4c41", label="perfectly calibrated")
    upper.plot(sure[filled] / number[filled], good[filled] / number[filled], "o-", color="#1565c0", label="this method")
    upper.set(ylabel="accuracy", ylim=(0, 1.02), title=f"calibration error {100 * error:.1f} %")
    upper.legend(loc="lower right", fontsize=8)
    upper.grid(alpha=0.3)
    edges = np.linspace(0, 1, len(number) + 1)
    lower.bar(edges[:-1], number, width=np.diff(edges), align="edge", color="#1565c0", alpha=0.6, edgecolor="white")
    lower.set(xlabel="confidence", ylabel="predictions", xlim=(0, 1))
    lower.grid(alpha=0.3)
    return figure


def mistakes_figure(samples: Sequence[str | Tensor], captions: Sequence[str]) -> Figure:
    """The most confident mistakes: images side by side, or sentences one below the other."""
    if samples and isinstance(samples[0], str):
        figure = Figure(figsize=(9.0, 0.62 * len(samples) + 0.3), layout="constrained")
        axis = figure.subplots()
        axis.axis("off")
        axis.set(xlim=(0, 1), ylim=(len(samples), 0))
        for row, (sample, caption) in enumerate(zip(samples, captions, strict=True)):
            axis.text(0, row + 0.35, _plain(textwrap.shorten(str(sample), 110, placeholder=" …")), fontsize=9)
            axis.text(0.02, row + 0.72, _plain(caption), fontsize=8, color="#c62828")
        return figure
    columns = min(6, max(1, len(samples)))
    rows = -(-len(samples) // columns) or 1
    figure = Figure(figsize=(1.8 * columns, 2.1 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    for axis, sample, caption in zip(axes, samples, captions, strict=False):
        pixels = sample.permute(1, 2, 0).clamp(0, 1).cpu().numpy()  # type: ignore[union-attr]
        axis.imshow(pixels if pixels.shape[-1] == 3 else pixels[..., 0], cmap="gray", vmin=0, vmax=1)
        axis.set_title(_plain(textwrap.fill(caption, 24)), fontsize=7, color="#c62828")
    return figure


def gain_figure(scores: Mapping[str, Sequence[float]], title: str) -> Figure:
    """Accuracies of several ways to train for each seed, with their means."""
    figure = Figure(figsize=(1.2 + 1.5 * len(scores), 4.0), layout="constrained")
    axis = figure.subplots()
    values = np.array(list(scores.values()))
    places = np.arange(len(scores))
    for seed in range(values.shape[1]):
        axis.plot(places, values[:, seed], "o-", color="#90a4ae", markersize=4, linewidth=0.8)
    axis.plot(places, values.mean(1), "_", color="#c62828", markersize=34, markeredgewidth=2.5, label="mean over seeds")
    axis.set_xticks(places, [textwrap.fill(name, 16) for name in scores])
    axis.set(ylabel="accuracy (%)", title=textwrap.fill(title, 22 * len(scores)), xlim=(-0.5, len(scores) - 0.5))
    axis.title.set_fontsize(9)
    axis.grid(alpha=0.3, axis="y")
    axis.legend(fontsize=8, markerscale=0.5)  # the marker is as wide as a column
    return figure
