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
    query: Tensor, support: Tensor, labels: Sequence[str], influence: Tensor, looks: Mapping[str, Tensor], title: str
) -> Figure:
    """A figure of one explanation.

    Args:
        query: ``(*shape)``, an image or any other sample.
        support: ``(S, *shape)``.
        labels: names of the classes of the ``S`` samples.
        influence: ``(S,)``; samples with the largest absolute values are drawn.
        looks: maps ``(H, W)`` in [0, 1] over the query, by title.
        title: title of the figure.
    """
    order = influence.abs().argsort(descending=True, stable=True)[:_SHOWN].tolist()
    distinct = list(dict.fromkeys(labels))
    short = dict(zip(distinct, short_names(distinct, 14), strict=True))
    names = [short[labels[place]] for place in order]
    images = query.dim() == 3
    columns = max(len(order), 1 + len(looks)) if images else 1
    figure = Figure(figsize=(max(5.0, 1.15 * columns), 4.4 if images else 3.0), layout="constrained")
    figure.suptitle(title, fontsize=10)
    grid = figure.add_gridspec(3 if images else 1, columns, height_ratios=(1.3, 1, 1) if images else None)
    if images:
        _draw_looks([figure.add_subplot(grid[0, place]) for place in range(1 + len(looks))], query, looks)
        for column, place in enumerate(order):
            axis = figure.add_subplot(grid[1, column])
            _draw(axis, support[place], f"{place}: {names[column]}")
    bars = figure.add_subplot(grid[-1, :])
    values = influence[order].double().clamp(-1e3, 1e3).numpy()
    finite = np.abs(values[np.abs(values) < 1e3]).max(initial=0.1)
    shown = np.clip(values, -1.2 * finite, 1.2 * finite)  # an only example has an infinite influence
    bars.bar(range(len(order)), shown, color=[_FOR if value >= 0 else _AGAINST for value in values])
    bars.set_xticks(
        range(len(order)), [f"{place}: {name}" for place, name in zip(order, names, strict=True)], fontsize=7
    )
    bars.set_ylabel("influence", fontsize=8)
    bars.axhline(0, color="black", linewidth=0.8)
    bars.grid(axis="y", alpha=0.3)
    use_fonts(figure)
    return figure


def _draw_looks(axes: Sequence[Axes], query: Tensor, looks: Mapping[str, Tensor]) -> None:
    _draw(axes[0], query, "query")
    for axis, (name, look) in zip(axes[1:], looks.items(), strict=True):
        _draw(axis, query, name)
        axis.imshow(look.numpy(), cmap="inferno", alpha=0.55, vmin=0, vmax=1)


def _draw(axis: Axes, image: Tensor, title: str) -> None:
    pixels: NDArray[np.float32] = image.float().numpy().transpose(1, 2, 0)
    low, high = pixels.min(), pixels.max()
    pixels = pixels if low >= 0 and high <= 1 else (pixels - low) / max(high - low, 1e-9)
    shown = pixels if pixels.shape[2] == 3 else pixels[..., 0]
    axis.imshow(shown, cmap="gray", vmin=0, vmax=1)
    axis.set_title(title, fontsize=7)
    axis.axis("off")
