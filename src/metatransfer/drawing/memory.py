"""Figures of what networks with a memory read and write."""

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor


def copy_figure(x: Tensor, bits: Tensor, answered: Tensor, written: Tensor, read: Tensor) -> Figure:
    """One sequence: its input and its answer, and below them where the memory was written and read at each position.

    Args:
        x: ``(S, C)`` the input.
        bits: ``(L, D)`` the right answer at the last positions.
        answered: ``(L, D)`` the probabilities of the answer.
        written: ``(S, slots)`` where it was written, rows sum to 1.
        read: ``(S, slots)`` where it was read.
    """
    steps, length = len(x), len(bits)
    figure = Figure(figsize=(8.0, 6.4), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True, gridspec_kw={"height_ratios": [1, 2.4]})
    after = np.full((steps, bits.shape[1]), np.nan)
    after[steps - length :] = answered.numpy()
    slots = _used(written, read)
    shown = ((x.numpy(), "input (last row: the mark)"), (after, "answer"),
             (written[:, slots].numpy(), "written"), (read[:, slots].numpy(), "read"))  # fmt: skip
    for axis, (values, title) in zip(axes.flat, shown, strict=True):
        axis.imshow(values.T, aspect="auto", cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(title, fontsize=10)
    for axis, label in ((axes[0, 0], "channel"), (axes[1, 0], "slot of the memory")):
        axis.set_ylabel(label, fontsize=9)
    every = range(0, len(slots), max(1, len(slots) // 12))
    for axis in axes[1]:
        axis.set_xlabel("position in the sequence", fontsize=9)
        axis.set_yticks(every, [str(slots[place]) for place in every])
    wrong = int(((answered > 0.5) != (bits > 0.5)).sum())
    figure.suptitle(f"one sequence of {length}: {wrong} of {bits.numel()} bits are wrong", fontsize=11)
    return figure


def hops_figure(sentences: Sequence[str], attention: Tensor, title: str) -> Figure:
    """The sentences of a story in their order, and how strongly each hop attends to them.

    Args:
        sentences: the ``S`` sentences, the last one first.
        attention: ``(hops, S)``, in the same order.
        title: the question and its answer.
    """
    hops, count = attention.shape
    figure = Figure(figsize=(3.5 + 0.7 * hops, 1.2 + 0.25 * count), layout="constrained")
    axis = figure.subplots()
    axis.imshow(attention.flip(1).T.numpy(), aspect="auto", cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    axis.set_yticks(range(count), [textwrap.shorten(one, 40) for one in reversed(sentences)], fontsize=8)
    axis.set_xticks(range(hops), [f"hop {hop + 1}" for hop in range(hops)], fontsize=8)
    for (hop, place), value in np.ndenumerate(attention.flip(1).numpy()):
        if value >= 0.05:
            colour = "white" if value > 0.6 else "black"
            axis.text(hop, place, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
    figure.suptitle(title, fontsize=10)
    return figure


def _used(written: Tensor, read: Tensor) -> list[int]:
    """The slots from the first to the last one in use with one more at both ends, across the seam of the ring."""
    count = written.shape[1]
    used = ((written.amax(0) > 0.1) | (read.amax(0) > 0.1)).nonzero().flatten().tolist() or [0]
    gaps = [(slot - before - 1) % count for slot, before in zip(used, used[-1:] + used[:-1], strict=True)]
    start, idle = used[gaps.index(max(gaps))], max(gaps)
    return [(start - 1 + step) % count for step in range(min(count, count - idle + 2))]
