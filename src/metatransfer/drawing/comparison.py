"""The figure of a comparison."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from metatransfer.drawing.names import plain, short_names, use_fonts

_BLUE, _GREY, _ORANGE = "#1565c0", "#757575", "#ef6c00"


class Bar(NamedTuple):
    """An entry of the figure, in percent.

    Attributes:
        mean: over seeds and units.
        half: of the paired interval of its difference from the best one; 0 for the best.
        baseline: whether it was not trained.
        tied: whether it cannot be told from the best one.
        seconds: mean time of a run.
        curves: ``(seconds, score)`` of the validations of each seed.
    """

    mean: float
    half: float
    baseline: bool
    tied: bool
    seconds: float
    curves: Sequence[Sequence[tuple[float, float]]]


def comparison_figure(bars: Mapping[str, Bar], groups: Sequence[Sequence[str]], title: str) -> Figure:
    """Accuracies with paired intervals and bars over groups of ties, and accuracy against time.

    Args:
        bars: by entry, the best first.
        groups: runs of entries that cannot be told apart.
        title: above the figure.
    """
    figure = Figure(figsize=(13.0, max(4.0, 0.42 * len(bars) + 1.8)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _order(left, bars, groups)
    _time(right, bars)
    figure.suptitle("\n".join(textwrap.wrap(plain(title), 130)), fontsize=11)
    use_fonts(figure)
    return figure


def _order(axis: Any, bars: Mapping[str, Bar], groups: Sequence[Sequence[str]]) -> None:  # noqa: ANN401
    names = list(bars)
    for row, bar in enumerate(bars.values()):
        color = _GREY if bar.baseline else _BLUE if bar.tied else _ORANGE
        axis.errorbar(bar.mean, row, xerr=bar.half or None, fmt="s" if bar.baseline else "o", color=color, capsize=3)
        axis.annotate(f"{bar.mean:.1f}", (bar.mean, row), xytext=(0, 5), textcoords="offset points", fontsize=7,
                      ha="center", color=color)  # fmt: skip
    low = min(bar.mean - bar.half for bar in bars.values())
    high = max(bar.mean + bar.half for bar in bars.values())
    step = 0.03 * (high - low or 1.0)
    for place, group in enumerate(groups):
        rows = [names.index(name) for name in group]
        x = high + step * (place + 1)
        axis.plot([x, x], [min(rows) - 0.2, max(rows) + 0.2], color="black", linewidth=3, solid_capstyle="butt")
    axis.set_yticks(range(len(names)), short_names(names, 34))
    axis.set_ylim(len(names) - 0.5, -0.8)
    axis.set_xlabel("test accuracy in percent; bars: paired 95 % interval of the difference from the best", fontsize=8)
    axis.set_title("thick lines join ties; grey squares are baselines", fontsize=9)
    axis.grid(alpha=0.3)


def _time(axis: Any, bars: Mapping[str, Bar]) -> None:  # noqa: ANN401
    from matplotlib import colormaps

    colors = colormaps["tab10"]
    trained = [name for name, bar in bars.items() if not bar.baseline]
    for place, name in enumerate(trained):
        bar, color = bars[name], colors(place % 10)
        for curve in bar.curves:
            if len(curve) > 1:
                axis.plot([x for x, _ in curve], [100 * y for _, y in curve], color=color, alpha=0.6, linewidth=1)
        (label,) = short_names([name], 26)
        axis.plot(bar.seconds, bar.mean, "o", color=color, label=label, markersize=6)
    axis.set_xlabel("seconds (lines: validation; points: test, with the time of the whole run)", fontsize=8)
    axis.set_ylabel("accuracy in percent", fontsize=8)
    axis.grid(alpha=0.3)
    if trained:
        axis.legend(fontsize=7, loc="best", framealpha=0.7)
    axis.set_title("accuracy against time", fontsize=9)
