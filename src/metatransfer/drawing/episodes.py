"""Figures of episodes and curves, independent of matplotlib's global state."""

import itertools
import textwrap
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from metatransfer.drawing.names import plain, short_names, use_fonts
from metatransfer.functional.intervals import estimate

_ROWS = 20  # more classes do not fit on a screen
_COLUMNS = 20
_PITCH = 1.25  # of the rows of tiles, with room for a word above each
_NOT_NEGATIVE = ("accuracy", "mse", "loss")
_RIGHT, _WRONG, _SUPPORT = "#2e7d32", "#c62828", "#37474f"


def episode_figure(
    support: Tensor, support_y: Tensor, query: Tensor, query_y: Tensor, predicted: Tensor, names: Sequence[str] = ()
) -> Figure:
    """One task: a row per class with support images at the left and queries at the right; mistakes are red.

    Images are ``(S, C, H, W)`` and ``(Q, C, H, W)``, their labels and predictions ``(S,)`` and ``(Q,)``.
    """
    ways = int(torch.cat([support_y, query_y]).max()) + 1
    shots = max(int((support_y == way).sum()) for way in range(ways))
    queries = min(12, max(int((query_y == way).sum()) for way in range(ways)))
    shots, shown = min(shots, 5), min(ways, _ROWS)
    columns = shots + queries
    known = [names[way] if way < len(names) else f"class {way}" for way in range(ways)]
    labels, predicted_as = short_names(known, 18), short_names(known, 11)
    figure = Figure(figsize=(max(4.2, 0.62 * columns + 1.6), 0.78 * shown + 0.7), layout="constrained")
    axis = figure.subplots()  # one for all images: axes take most of the time of a figure
    for way in range(shown):
        top = _PITCH * way
        for column, index in enumerate((support_y == way).nonzero().flatten().tolist()[:shots]):
            _tile(axis, support[index], (column, top), _SUPPORT)
        for column, index in enumerate((query_y == way).nonzero().flatten().tolist()[:queries]):
            right = int(predicted[index]) == way
            title = "" if right else predicted_as[int(predicted[index])]
            _tile(axis, query[index], (shots + column, top), _RIGHT if right else _WRONG, title)
    axis.set(xlim=(0, columns), ylim=(_PITCH * (shown - 1) + 1, 1 - _PITCH), xticks=[])
    axis.set_yticks([_PITCH * way + 0.5 for way in range(shown)], labels[:shown], fontsize=7)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    accuracy = (predicted == query_y).float().mean().item()
    more = f", {shown} of {ways} classes" if shown < ways else ""
    first = f"{shots} support image{'s' * (shots > 1)} of each class, then queries"
    title = f"one task{more}: {first}; accuracy {accuracy:.0%} (red: wrong, with the predicted class)"
    figure.suptitle(textwrap.fill(title, int(13 * figure.get_figwidth())), fontsize=8)
    return figure


def support_scores_figure(
    support: Tensor, support_y: Tensor, query: Tensor, query_y: Tensor, values: Tensor, name: str
) -> Figure:
    """Scores in [0, 1] of one task as a matrix: a row per query, a column per support image or per class.

    Images are ``(S, C, H, W)`` and ``(Q, C, H, W)``, labels ``(S,)`` and ``(Q,)``, values ``(Q, S)``. The cells of a
    query's own class are framed.
    """
    columns = support_y.argsort(stable=True)[:_COLUMNS]
    ways = sorted(set(support_y.tolist()))
    rows = torch.cat([(query_y == way).nonzero().flatten()[: max(1, 10 // len(ways))] for way in ways])[:_ROWS]
    height, width = len(rows), len(columns)
    figure = Figure(figsize=(0.52 * width + 1.5, 0.52 * height + 1.6), layout="constrained")
    axis = figure.subplots()
    shown = values[rows][:, columns].numpy()
    axis.imshow(shown, cmap="Blues", vmin=0, vmax=1, extent=(0, width, height, 0))
    for row, column in np.ndindex(height, width):
        dark = shown[row, column] > 0.5
        text: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 7, "color": "white" if dark else "black"}
        axis.text(column + 0.5, row + 0.5, f"{shown[row, column]:.2f}", **text)
        if query_y[rows[row]] == support_y[columns[column]]:
            axis.add_patch(Rectangle((column + 0.05, row + 0.05), 0.9, 0.9, fill=False, color=_RIGHT, linewidth=1.8))
    for place, index in enumerate(columns):
        _picture(axis, support[index], place, -1.1)
    for place, index in enumerate(rows):
        _picture(axis, query[index], -1.1, place)
    axis.set(xlim=(-1.15, width + 0.05), ylim=(height + 0.05, -1.15), xticks=[], yticks=[])
    axis.set_ylabel("queries", fontsize=8)
    axis.set_title("support set", fontsize=8)
    axis.spines[:].set_visible(False)
    title = f"one task: {name}; cells of a query's own class are framed in green"
    figure.suptitle(textwrap.fill(title, int(13 * figure.get_figwidth())), fontsize=8)
    return figure


def _picture(axis: Any, image: Tensor, left: float, top: float) -> tuple[float, float, float, float]:  # noqa: ANN401
    """Draws an image into a square of side 1, and returns its left, right, lower and upper edge."""
    height, width = (0.45 * size / max(image.shape[-2:]) for size in image.shape[-2:])
    extent = (left + 0.5 - width, left + 0.5 + width, top + 0.5 + height, top + 0.5 - height)
    axis.imshow(_pixels(image), cmap="gray", vmin=0, vmax=1, extent=extent)
    return extent


def _pixels(image: Tensor) -> np.ndarray:
    """An image ``(C, H, W)`` as matplotlib draws it; strokes of one channel are black on white."""
    pixels = image.float().cpu().clamp(0, 1).numpy()
    found: np.ndarray = 1 - pixels[0] if pixels.shape[0] == 1 else pixels[:3].transpose(1, 2, 0)
    return found


def _tile(axis: Any, image: Tensor, corner: tuple[float, float], color: str, title: str = "") -> None:  # noqa: ANN401
    left, right, lower, upper = _picture(axis, image, *corner)
    axis.add_patch(Rectangle((left, upper), right - left, lower - upper, fill=False, color=color, linewidth=2.5))
    if title:
        axis.text((left + right) / 2, upper - 0.05, title, fontsize=7, color=color, ha="center", va="bottom")


def learning_curve_figure(
    steps: Sequence[int],
    values: Sequence[float],
    intervals: Sequence[tuple[float, float]],
    baselines: dict[str, float],
    name: str,
) -> Figure:
    """A validation score over training with the ends of its 95% intervals; baselines are horizontal lines."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axis = figure.subplots()
    ends = np.asarray(intervals, dtype=float)
    if name in _NOT_NEGATIVE:
        ends = ends.clip(min=0)
    if np.isfinite(ends).any():
        label = "95 % interval"
        axis.fill_between(steps, ends[:, 0], ends[:, 1], alpha=0.2, color="#1565c0", linewidth=0, label=label)
    axis.plot(steps, np.asarray(values), marker="o", markersize=3, color="#1565c0", label="this method")
    for style, (label, value) in zip(itertools.cycle(("--", ":", "-.", (0, (1, 4)))), baselines.items(), strict=False):
        axis.axhline(value, linestyle=style, color="#6d4c41", label=plain(label))
    axis.set(xlabel="optimiser step", ylabel=f"validation {name}", title="validations during training")
    axis.title.set_fontsize(10)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.3)
    axis.legend(loc="best", fontsize=8)
    return figure


def adaptation_figure(scores: Tensor, name: str) -> Figure:
    """A score ``(steps + 1, T)`` before adaptation and after each inner step: mean over tasks with its 95% interval."""
    figure = Figure(figsize=(5.0, 3.6), layout="constrained")
    axis = figure.subplots()
    found = [estimate(len(row), float(row.sum()), float(row.square().sum())) for row in scores.double()]
    mean, half = (np.array([one[part] for one in found]) for part in (0, 1))
    bars = np.stack([np.minimum(half, mean) if name in _NOT_NEGATIVE else half, half])
    if name == "accuracy":
        bars[1] = np.minimum(half, 1 - mean)
    label = f"mean over {scores.shape[1]} tasks" + (", bars: 95 % interval" if scores.shape[1] > 1 else "")
    axis.errorbar(range(len(mean)), mean, yerr=np.nan_to_num(bars), fmt="o-", capsize=3, color="#1565c0", label=label)
    axis.set(xlabel="inner step (0 = before adaptation)", ylabel=f"query {name}", title="adaptation to tasks")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.title.set_fontsize(10)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return figure


def regression_figure(
    support_x: Tensor,
    support_y: Tensor,
    query_x: Tensor,
    query_y: Tensor,
    grid: Tensor,
    curves: dict[str, Tensor],
    deviations: Tensor | None = None,
) -> Figure:
    """Tasks of one variable side by side: the true curve, the support points and the predictions.

    ``deviations`` are the standard deviations of the last prediction, drawn as a band of twice their size.
    """
    tasks = len(support_x)
    figure = Figure(figsize=(3.6 * tasks, 3.4), layout="constrained")
    axes = figure.subplots(1, tasks, squeeze=False, sharey=True)[0]
    styles = [{"linestyle": ":", "color": "#757575"}, {"linestyle": "--", "color": "#42a5f5"}]
    for task, axis in enumerate(axes):
        x, y = torch.cat([support_x[task], query_x[task]]), torch.cat([support_y[task], query_y[task]])
        order = x.argsort()
        axis.plot(x[order], y[order], color="#c62828", linewidth=1.5, label="true")
        for index, (label, values) in enumerate(curves.items()):
            last = index == len(curves) - 1
            style = {"linestyle": "-", "color": "#0d47a1", "linewidth": 2} if last else styles[min(index, 1)]
            axis.plot(grid[task], values[task], label=label, **style)
        if deviations is not None:
            middle, wide = next(reversed(curves.values()))[task], 2 * deviations[task]
            band = {"alpha": 0.2, "color": "#0d47a1", "linewidth": 0, "label": "± 2 standard deviations"}
            axis.fill_between(grid[task], middle - wide, middle + wide, **band)
        axis.plot(support_x[task], support_y[task], "^", color="#6a1b9a", markersize=8, label="support", zorder=5)
        axis.set_xlabel("x")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("y")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(curves) + 3, fontsize=9)
    return figure


def to_pixels(figure: Figure) -> np.ndarray:
    """Renders a figure as ``(H, W, 3)`` uint8."""
    use_fonts(figure)
    figure.set_dpi(110)
    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # sentences in other alphabets
        canvas.draw()  # type: ignore[no-untyped-call]
    pixels: np.ndarray = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    return pixels[..., :3].copy()
