"""Figures of two domains before and after adaptation, and of the course of the adaptation."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from metatransfer.drawing.names import short_names

_SAMPLES = 500  # of each domain: more points would overlap, and t-SNE would be slow
_NAMED = 10  # more classes cannot be distinguished by colour
_UNKNOWN = "#9e9e9e"
_GREY_FREE = {7: "#000000"}  # grey stands for unknown classes
_KEPT = 50  # principal components that t-SNE uses


class Embedded(NamedTuple):
    """The features of two domains, projected to two dimensions.

    Attributes:
        source: ``(N, 2)``.
        target: ``(M, 2)``.
        source_y: ``(N,)`` int64.
        target_y: ``(M,)`` int64 with -1 for an unknown label; ``None`` if no labels are known.
    """

    source: Tensor
    target: Tensor
    source_y: Tensor
    target_y: Tensor | None = None


def embed(
    source_features: Tensor,
    target_features: Tensor,
    source_y: Tensor,
    target_y: Tensor | None = None,
    method: Literal["pca", "tsne"] = "tsne",
    seed: int = 0,
) -> Embedded:
    """Projects finite features of the same layer for both domains, at most 500 samples each, to the same plane."""
    mine, other = (_drawn(len(x), seed) for x in (source_features, target_features))
    rows = (source_features.detach().cpu()[mine], target_features.detach().cpu()[other])
    both = torch.cat([part.flatten(1).double() for part in rows]).numpy()
    few = method == "pca" or len(both) < 5
    points = torch.from_numpy(_principal(both, 2) if few else _neighbours(both, seed))
    labels = None if target_y is None else target_y.cpu()[other]
    return Embedded(points[: len(mine)], points[len(mine) :], source_y.cpu()[mine], labels)


def _drawn(count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:_SAMPLES].sort().values


def _principal(x: np.ndarray, count: int) -> np.ndarray:
    from sklearn.decomposition import PCA  # slow to import

    with np.errstate(invalid="ignore"):  # all samples may be equal
        points: np.ndarray = PCA(min(count, *x.shape), svd_solver="full").fit_transform(x)
    return np.pad(points, ((0, 0), (0, max(0, 2 - points.shape[1]))))


def _neighbours(x: np.ndarray, seed: int) -> np.ndarray:
    from sklearn.manifold import TSNE  # slow to import

    if np.ptp(x, axis=0).max() == 0:
        return np.zeros((len(x), 2))  # all samples are equal
    kept, perplexity = _principal(x, _KEPT), min(30.0, (len(x) - 1) / 3)
    found: np.ndarray = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(kept)
    return found.astype(np.float64)


def embedding_figure(before: Embedded, after: Embedded, names: Sequence[str] = ()) -> Figure:
    """Both domains before and after adaptation; colours are classes, circles the source and crosses the target."""
    every = [labels for part in (before, after) for labels in (part.source_y, part.target_y) if labels is not None]
    present = sorted({one for one in torch.cat(every).tolist() if one >= 0})
    colors = _colors(present)
    figure = Figure(figsize=(9.6, 5.0), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, part, title in zip(axes, (before, after), ("before adaptation", "after adaptation"), strict=True):
        _scatter(axis, part, colors)
        axis.set(xticks=[], yticks=[], title=title)
        axis.title.set_fontsize(10)
    figure.legend(handles=_legend(before, after, colors, names), loc="outside lower center", ncols=6, fontsize=8)
    figure.suptitle("features of both domains in two dimensions", fontsize=10)
    return figure


def _colors(present: Sequence[int]) -> dict[int, Any]:
    if len(present) <= _NAMED:
        shades = [_GREY_FREE.get(place, colormaps["tab10"](place)) for place in range(len(present))]
        return dict(zip(present, shades, strict=True))
    return {one: colormaps["turbo"](place / (len(present) - 1)) for place, one in enumerate(present)}


def _scatter(axis: Any, part: Embedded, colors: Mapping[int, Any]) -> None:  # noqa: ANN401
    source, target = part.source.cpu().numpy(), part.target.cpu().numpy()
    labels = [-1] * len(target) if part.target_y is None else part.target_y.tolist()
    mine, other = ([colors.get(one, _UNKNOWN) for one in known] for known in (part.source_y.tolist(), labels))
    size = 16 if len(source) + len(target) > 400 else 26
    axis.scatter(*source.T, s=size, facecolors="none", edgecolors=mine, linewidths=0.9)
    axis.scatter(*target.T, s=size, c=other, marker="x", linewidths=1.1)


def _legend(before: Embedded, after: Embedded, colors: Mapping[int, Any], names: Sequence[str]) -> list[Line2D]:
    def mark(label: str, **style: Any) -> Line2D:  # noqa: ANN401
        return Line2D([], [], linestyle="", label=label, **style)

    unknown = any(part.target_y is None or bool((part.target_y < 0).any()) for part in (before, after))
    color = _UNKNOWN if unknown else "#37474f"
    found = [
        mark("source", marker="o", markerfacecolor="none", color="#37474f"),
        mark("target, class unknown" if unknown else "target", marker="x", color=color),
    ]
    if len(colors) > _NAMED:
        return [*found, mark(f"{len(colors)} classes, one colour each", marker="")]
    shown = short_names(names)
    for one, shade in colors.items():
        found.append(mark(shown[one] if one < len(shown) else f"class {one}", marker="s", color=shade))
    return found


def domain_curves_figure(steps: Sequence[int], curves: Mapping[str, Sequence[float]], chance: float = 0.5) -> Figure:
    """Logged values of an adaptation over the optimiser steps, one curve below the other."""
    figure = Figure(figsize=(6.4, 0.6 + 1.9 * len(curves)), layout="constrained")
    axes = figure.subplots(len(curves), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (name, values) in zip(axes, curves.items(), strict=True):
        _curve(axis, steps, name, np.asarray(values, dtype=float), chance)
    axes[0].set_title("course of the adaptation", fontsize=10)
    axes[-1].set_xlabel("optimiser step")
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.align_ylabels(axes)
    return figure


def _curve(axis: Any, steps: Sequence[int], name: str, values: np.ndarray, chance: float) -> None:  # noqa: ANN401
    shown = np.where(np.isfinite(values), values, np.nan)
    few = len(values) <= 60
    axis.plot(steps, shown, "o-" if few else "-", markersize=3, linewidth=1.4, color="#1565c0")
    axis.set_ylabel(name)
    axis.grid(alpha=0.3)
    if name == "discriminator accuracy":
        axis.axhline(chance, linestyle="--", color="#6d4c41", label=f"chance ({100 * chance:.0f} %)")
        axis.set_ylim(min(0.4, chance - 0.1, float(np.nanmin(np.append(shown, 1.0))) - 0.03), 1.03)
        axis.legend(loc="best", fontsize=8)
    elif name == "gradient ratio" and np.nanmin(shown, initial=np.inf) * 30 < np.nanmax(shown, initial=0):
        axis.set_yscale("log" if np.nanmin(shown) > 0 else "linear")
