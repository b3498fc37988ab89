"""Figures of a classifier's predictions."""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from metatransfer.drawing.names import plain, short_names
from metatransfer.functional.intervals import estimate

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
    numbered = "" if few else ", by number"
    axis.set(xlabel=f"predicted class{numbered}", ylabel=f"true class{numbered}", title="confusion matrix")
    axis.title.set_fontsize(10)
    if few:
        ticks = range(len(names))
        short = short_names(names)
        long = max(map(len, short)) > 2
        axis.set_xticks(ticks, short, rotation=45 if long else 0, ha="right" if long else "center")
        axis.set_yticks(ticks, short)
        for (row, column), count in np.ndenumerate(counts):
            if count:
                color = "white" if parts[row, column] > 0.5 else "black"
                axis.text(column, row, str(count), ha="center", va="center", fontsize=7, color=color)
    return figure


def calibration_figure(count: Tensor, right: Tensor, confidence: Tensor, error: float) -> Figure:
    """A reliability diagram: accuracy by confidence, and the number of predictions by confidence."""
    number, good, sure = (part.cpu().numpy() for part in (count, right, confidence))
    filled = number > 0
    figure = Figure(figsize=(5.0, 5.0), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 1], [0, 1], "--", color="#6d4c41", label="perfectly calibrated")
    upper.plot(sure[filled] / number[filled], good[filled] / number[filled], "o-", color="#1565c0", label="this method")
    upper.set(ylabel="fraction correct", ylim=(0, 1.02))
    upper.set_title(f"calibration error {100 * error:.1f} %", fontsize=10)
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
            axis.text(0, row + 0.35, plain(textwrap.shorten(str(sample), 110, placeholder=" …")), fontsize=9)
            axis.text(0.02, row + 0.72, plain(caption), fontsize=8, color="#c62828")
        return figure
    columns = min(6, max(1, len(samples)))
    rows = -(-len(samples) // columns) or 1
    filled = [plain(textwrap.fill(caption, 24)) for caption in captions]
    lines = max((caption.count("\n") + 1 for caption in filled), default=1)
    pitch = 1 + 0.07 * lines  # of the rows, with room for the caption above each image
    figure = Figure(figsize=(1.8 * columns, 1.8 * pitch * rows + 0.1), layout="constrained")
    axis = figure.subplots()  # one for all images: axes take most of the time of a figure
    axis.axis("off")
    for place, (sample, caption) in enumerate(zip(samples, filled, strict=True)):
        pixels = sample.permute(1, 2, 0).clamp(0, 1).cpu().numpy()  # type: ignore[union-attr]
        height, width = (0.47 * size / max(pixels.shape[:2]) for size in pixels.shape[:2])
        x, y = place % columns + 0.5, place // columns * pitch + 0.5
        axis.imshow(pixels if pixels.shape[-1] == 3 else pixels[..., 0], cmap="gray", vmin=0, vmax=1,
                    extent=(x - width, x + width, y + height, y - height))  # fmt: skip
        axis.text(x, y - height - 0.03, caption, fontsize=7, color="#c62828", ha="center", va="bottom")
    axis.set(xlim=(0, columns), ylim=((rows - 1) * pitch + 1, 1 - pitch))
    return figure


def gain_figure(scores: Mapping[str, Sequence[float]], title: str) -> Figure:
    """Accuracies in percent of several ways to train for each seed, with their means and 95% intervals."""
    figure = Figure(figsize=(max(4.6, 1.2 + 1.5 * len(scores)), 4.0), layout="constrained")
    axis = figure.subplots()
    values, places = np.array(list(scores.values())), np.arange(len(scores))
    mean, seeds = values.mean(1), values.shape[1]
    if seeds > 1:
        half = np.array([estimate(seeds, row.sum(), np.square(row).sum()).ci95 for row in values])
        bars = np.stack([np.minimum(half, mean), np.minimum(half, 100 - mean)])
        label = f"mean of {seeds} seeds, 95 % interval"
        axis.errorbar(places, mean, bars, fmt="_", color="#c62828", markersize=22, capsize=5, label=label)
    for seed in range(seeds):  # side by side, so that equal seeds are seen
        shift = 0.16 * (seed / max(1, seeds - 1) - 0.5) if seeds > 1 else 0
        name = "_nolegend_" if seed else "one seed" if seeds > 1 else "one seed, no interval"
        axis.plot(places + shift, values[:, seed], "o", color="#546e7a", markersize=4, alpha=0.8, label=name)
    axis.set_xticks(places, [textwrap.fill(plain(name), 16) for name in scores])
    axis.set(ylabel="accuracy (%)", xlim=(-0.5, len(scores) - 0.5))
    axis.set_title(textwrap.fill(title.replace(" ± ", "\u00a0±\u00a0"), 22 * max(3, len(scores))), fontsize=9)
    axis.grid(alpha=0.3, axis="y")
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    return figure
