"""Figures of episodes and curves, independent of matplotlib's global state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

_RIGHT, _WRONG, _SUPPORT = "#2e7d32", "#c62828", "#37474f"


def episode_figure(support: Tensor, support_y: Tensor, query: Tensor, query_y: Tensor, predicted: Tensor) -> Figure:
    """One task: a row per class with support images at the left and queries at the right; mistakes are red."""
    ways = int(torch.cat([support_y, query_y]).max()) + 1
    shots = max(int((support_y == way).sum()) for way in range(ways))
    queries = min(12, max(int((query_y == way).sum()) for way in range(ways)))
    shots = min(shots, 5)
    columns = shots + queries
    figure = Figure(figsize=(0.62 * columns + 1.2, 0.72 * ways + 0.7), layout="constrained")
    grid = figure.subplots(ways, columns, squeeze=False, gridspec_kw={"wspace": 0.05, "hspace": 0.05})
    for axis in grid.flat:
        axis.axis("off")
    for way in range(ways):
        for column, index in enumerate((support_y == way).nonzero().flatten().tolist()[:shots]):
            _tile(grid[way, column], support[index], _SUPPORT, f"class {way}" if column == 0 else "")
        for column, index in enumerate((query_y == way).nonzero().flatten().tolist()[:queries]):
            right = int(predicted[index]) == way
            title = "" if right else f"as {int(predicted[index])}"
            _tile(grid[way, shots + column], query[index], _RIGHT if right else _WRONG, title)
    accuracy = (predicted == query_y).float().mean().item()
    figure.suptitle(f"support | queries (red: wrong prediction); accuracy {accuracy:.0%}", fontsize=9)
    return figure


def _tile(axis: Any, image: Tensor, color: str, title: str) -> None:  # noqa: ANN401
    pixels = image.float().cpu().clamp(0, 1).numpy()
    if pixels.shape[0] == 1:
        axis.imshow(1 - pixels[0], cmap="gray", vmin=0, vmax=1)
    else:
        axis.imshow(pixels[:3].transpose(1, 2, 0))
    axis.axis("on")
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_edgecolor(color)
        spine.set_linewidth(2.5)
    if title:
        axis.set_title(title, fontsize=7, color=color, pad=2)


def learning_curve_figure(
    steps: Sequence[int], values: Sequence[float], intervals: Sequence[float], baselines: dict[str, float], name: str
) -> Figure:
    """A validation score over training with its 95% confidence interval; baselines are horizontal lines."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axis = figure.subplots()
    y, h = np.asarray(values), np.nan_to_num(np.asarray(intervals, dtype=float))
    axis.fill_between(steps, y - h, y + h, alpha=0.2, color="#1565c0", linewidth=0)
    axis.plot(steps, y, marker="o", markersize=3, color="#1565c0", label="this method")
    for style, (label, value) in zip(("--", ":", "-.", (0, (1, 4))), baselines.items(), strict=False):
        axis.axhline(value, linestyle=style, color="#6d4c41", label=label)
    axis.set(xlabel="optimiser step", ylabel=f"validation {name} (mean, 95% CI)")
    axis.grid(alpha=0.3)
    axis.legend(loc="best", fontsize=8)
    return figure


def adaptation_figure(scores: Tensor, name: str) -> Figure:
    """A score before adaptation and after each inner step: mean over tasks with its 95% confidence interval."""
    figure = Figure(figsize=(5.0, 3.6), layout="constrained")
    axis = figure.subplots()
    mean = scores.mean(1).numpy()
    half = (1.96 * scores.std(1) / scores.shape[1] ** 0.5).numpy() if scores.shape[1] > 1 else np.zeros_like(mean)
    axis.errorbar(range(len(mean)), mean, yerr=half, marker="o", capsize=3, color="#1565c0")
    axis.set(xlabel="inner step (0 = before adaptation)", ylabel=f"query {name}")
    axis.set_xticks(range(len(mean)))
    axis.grid(alpha=0.3)
    return figure


def regression_figure(
    support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor, grid: Tensor, curves: dict[str, Tensor]
) -> Figure:
    """Tasks of one variable side by side: the true curve, the support points and the predictions."""
    tasks = len(support_x)
    figure = Figure(figsize=(3.6 * tasks, 3.4), layout="constrained")
    axes = figure.subplots(1, tasks, squeeze=False, sharey=True)[0]
    styles = [{"linestyle": ":", "color": "#757575"}, {"linestyle": "--", "color": "#42a5f5"}]
    for task, axis in enumerate(axes):
        order = query_x[task].argsort()
        axis.plot(query_x[task][order], query_y[task][order], color="#c62828", linewidth=1.5, label="true")
        for index, (label, values) in enumerate(curves.items()):
            last = index == len(curves) - 1
            style = {"linestyle": "-", "color": "#0d47a1", "linewidth": 2} if last else styles[min(index, 1)]
            axis.plot(grid[task], values[task], label=label, **style)
        axis.plot(support_x[task], support_y[task], "^", color="#6a1b9a", markersize=8, label="support", zorder=5)
        axis.set_xlabel("x")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("y")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(curves) + 2, fontsize=9)
    return figure


def to_pixels(figure: Figure) -> np.ndarray:
    """Renders a figure as ``(H, W, 3)`` uint8."""
    figure.set_dpi(110)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    pixels: np.ndarray = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    return pixels[..., :3].copy()
