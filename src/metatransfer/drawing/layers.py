"""The figure of how the layers of a network changed."""

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.figure import Figure

from metatransfer.drawing.names import short_names, use_fonts


def layers_figure(
    names: Sequence[str],
    similarities: Mapping[str, Sequence[float | None]],
    moved: Mapping[str, Sequence[float | None]],
    probes: Mapping[str, Sequence[float | None]],
    title: str,
) -> Figure:
    """Three panels with one row for each layer: similarities, movements in percent, and accuracies in percent.

    Args:
        names: the layers, from input to output.
        similarities: values from 0 to 1 for each layer, by legend; ``None`` leaves a gap.
        moved: relative movements for each layer, by legend.
        probes: accuracies from 0 to 1 for each layer, by legend; the panel is left out if it is empty.
        title: title of the figure.
    """
    panels = {"similarity of the features": similarities, "weights moved by (%)": moved}
    panels |= {"accuracy of a probe (%)": probes} if probes else {}
    figure = Figure(figsize=(4.0 * len(panels), max(3.2, 0.3 * len(names) + 2.0)), layout="constrained")
    figure.suptitle(textwrap.fill(title, 50 * len(panels)), fontsize=9)
    axes = figure.subplots(1, len(panels), sharey=True)
    places = range(len(names))
    colors = list(matplotlib.color_sequences["tab10"])
    for axis, (label, series) in zip(axes, panels.items(), strict=True):
        axis.set_title(label, fontsize=9)
        axis.grid(alpha=0.3)
        axis.tick_params(labelsize=8)
        scale = 1 if series is similarities else 100
        for number, (name, values) in enumerate(series.items()):
            drawn = [float("nan") if value is None else scale * value for value in values]
            style = {"color": colors[number], "label": name}
            if series is moved:
                height = 0.8 / len(series)
                axis.barh(
                    [place + (number - (len(series) - 1) / 2) * height for place in places], drawn, height, **style
                )
            else:
                # what chance gives is a reference, not a result
                style |= {"color": "gray", "linestyle": "--"} if "chance" in name else {}
                axis.plot(drawn, places, marker="o", markersize=4, **style)
        if len(series) > 1 or series is probes:
            axis.legend(fontsize=7, loc="best")
    axes[0].set_xlim(min(0.0, axes[0].get_xlim()[0]), 1.03)
    axes[0].set_yticks(places, short_names(names), fontsize=8)
    axes[0].invert_yaxis()  # the input is on top
    use_fonts(figure)
    return figure
