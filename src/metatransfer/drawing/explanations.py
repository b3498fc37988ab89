"""The picture of an explanation: a query, where the network looked, and the support samples that decided."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from metatransfer.drawing.names import short_names, use_fonts

_SHOWN = 12  # more samples leave no space
_FOR, _AGAINST = "#1565c0", "#c62828"


def explanation_figure(
    query: Tensor,
    support: Tensor,
    labels: Sequence[str],
    influence: Tensor,
    looks: Mapping[str, Tensor],
    title: str,
    attributions: Tensor | None = None,
) -> Figure:
    """A figure of one explanation.

    Args:
        query: ``(*shape)``, an image or any other sample.
        support: ``(S, *shape)``.
        labels: names of the classes of the ``S`` samples.
        influence: ``(S,)``; samples with the largest absolute values are drawn.
        looks: maps ``(H, W)`` in [0, 1] over the query, by title.
        title: title of the figure.
        attributions: of the shape of the query, or ``(L,)``; on an image their sum over the channels is drawn, else the
            largest ones.
    """
    order = influence.abs().argsort(descending=True, stable=True)[:_SHOWN].tolist()
    distinct = list(dict.fromkeys(labels))
    short = dict(zip(distinct, short_names(distinct, 14), strict=True))
    names = [f"{place}: {short[labels[place]]}" for place in order]
    images = query.dim() == 3
    if images and attributions is not None:
        summed = attributions.sum(0)
        looks = {**looks, "attributions": summed / summed.abs().quantile(0.99).clamp(min=1e-12)}
    columns = max(len(order), 1 + len(looks)) if images else 1
    rows = 3 if images else 1 if attributions is None else 2
    figure = Figure(figsize=(max(5.0, 1.15 * columns), (3.0, 4.6, 4.4)[rows - 1]), layout="constrained")
    figure.suptitle(title, fontsize=10)
    grid = figure.add_gridspec(rows, columns, height_ratios=(1.3, 1, 1) if images else None)
    if images:
        _draw_looks([figure.add_subplot(grid[0, place]) for place in range(1 + len(looks))], query, looks)
        for column, place in enumerate(order):
            _draw(figure.add_subplot(grid[1, column]), support[place], names[column])
    elif attributions is not None:
        values = attributions.flatten()
        largest = values.abs().argsort(descending=True, stable=True)[:_SHOWN].sort().values
        _bars(figure.add_subplot(grid[0, 0]), values[largest], list(map(str, largest.tolist())), "attribution of input")
    _bars(figure.add_subplot(grid[-1, :]), influence[order], names, "influence")
    use_fonts(figure)
    return figure


def _bars(axis: Axes, values: Tensor, names: Sequence[str], label: str) -> None:
    """Bars for and against the answer."""
    heights = values.double().clamp(-1e3, 1e3).numpy()
    finite = np.abs(heights[np.abs(heights) < 1e3]).max(initial=0.0) or 0.1
    shown = np.clip(heights, -1.2 * finite, 1.2 * finite)  # an only example has an infinite influence
    axis.bar(range(len(names)), shown, color=[_FOR if value >= 0 else _AGAINST for value in heights])
    axis.set_xticks(range(len(names)), names, fontsize=7)
    axis.set_ylabel(label, fontsize=8)
    axis.axhline(0, color="black", linewidth=0.8)
    axis.grid(axis="y", alpha=0.3)


def _draw_looks(axes: Sequence[Axes], query: Tensor, looks: Mapping[str, Tensor]) -> None:
    _draw(axes[0], query, "query")
    for axis, (name, look) in zip(axes[1:], looks.items(), strict=True):
        _draw(axis, query, name)
        if bool((look < 0).any()):  # on white, as both colours of the bars would be lost on the image
            axis.imshow(look.numpy(), cmap="bwr_r", vmin=-1, vmax=1)
        else:
            axis.imshow(look.numpy(), cmap="inferno", alpha=0.55, vmin=0, vmax=1)


def _draw(axis: Axes, image: Tensor, title: str) -> None:
    pixels: NDArray[np.float32] = image.float().numpy().transpose(1, 2, 0)
    low, high = pixels.min(), pixels.max()
    pixels = pixels if low >= 0 and high <= 1 else (pixels - low) / max(high - low, 1e-9)
    shown = pixels if pixels.shape[2] == 3 else pixels[..., 0]
    axis.imshow(shown, cmap="gray", vmin=0, vmax=1)
    axis.set_title(title, fontsize=7)
    axis.axis("off")
