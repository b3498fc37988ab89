"""Figures of what networks with a memory read and write over time."""

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


def _used(written: Tensor, read: Tensor) -> list[int]:
    """The slots from the first to the last one in use with one more at both ends, across the seam of the ring."""
    count = written.shape[1]
    used = ((written.amax(0) > 0.1) | (read.amax(0) > 0.1)).nonzero().flatten().tolist() or [0]
    gaps = [(slot - before - 1) % count for slot, before in zip(used, used[-1:] + used[:-1], strict=True)]
    start, idle = used[gaps.index(max(gaps))], max(gaps)
    return [(start - 1 + step) % count for step in range(min(count, count - idle + 2))]
