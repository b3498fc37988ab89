"""Figures of distance matrices."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from metatransfer.drawing.names import short_names


def distances_figure(matrices: Mapping[str, Tensor], names: Sequence[str]) -> Figure:
    """Heat maps, one for each title: dark is near; every cell has its number."""
    side = max(3.0, 0.7 * len(names) + 1.5)
    figure = Figure(figsize=(side * len(matrices) + 0.5, side + 0.5), layout="constrained")
    labels = short_names(names)
    axes = figure.subplots(1, len(matrices), squeeze=False)[0]
    for axis, (title, matrix) in zip(axes, matrices.items(), strict=True):
        values = matrix.numpy()
        image = axis.imshow(values, cmap="viridis")
        middle = (values.min() + values.max()) / 2
        for (row, column), value in np.ndenumerate(values):
            color = "white" if value < middle else "black"
            axis.text(column, row, f"{value:.3g}", ha="center", va="center", fontsize=8, color=color)
        axis.set_xticks(range(len(names)), labels, rotation=30, ha="right")
        axis.set_yticks(range(len(names)), labels)
        axis.set_title(title, fontsize=9)
        figure.colorbar(image, ax=axis, shrink=0.7)
    return figure
