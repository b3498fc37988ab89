"""Figures of a task and of a method's predictions for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from metatransfer.batches import Episode
from metatransfer.drawing import episodes as drawing
from metatransfer.functional.losses import is_regression
from metatransfer.methods.outputs import point_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@runtime_checkable
class AdaptsInSteps(Protocol):
    """A method that learns a task in steps."""

    def adaptation_curve(self, episode: Episode) -> Tensor:
        """The query score before adaptation and after each step ``(steps + 1, T)``."""

    def adaptation_outputs(self, episode: Episode) -> list[Any]:
        """The outputs before adaptation and after each step."""


@torch.no_grad()
def episode_figures(module: Any, episode: Episode, stage: str, score_name: str) -> dict[str, Figure]:  # noqa: ANN401
    """Figures of the first task, or of the first regression tasks with one input and one target variable."""
    figures: dict[str, Figure] = {}
    x, regression = episode.support_x, is_regression(episode.query_y)
    if not isinstance(x, Tensor):
        return figures
    if x.dim() == 5 and not regression:
        first = episode.map(lambda tensor: tensor[:1])
        predicted = point_of(module(first))[0].argmax(-1).cpu()
        shown: Any = first.map(lambda tensor: tensor[0].cpu())
        figures[f"{stage}_episode"] = drawing.episode_figure(
            shown.support_x, shown.support_y, shown.query_x, shown.query_y, predicted
        )
    elif regression and x.shape[2:] == episode.support_y.shape[2:] == (1,):
        figures[f"{stage}_episode"] = regression_figure(module, episode)
    if isinstance(module, AdaptsInSteps):
        figures["adaptation"] = drawing.adaptation_figure(module.adaptation_curve(episode).cpu(), score_name)
    return figures


def regression_figure(module: Any, episode: Episode, tasks: int = 3, points: int = 200) -> Figure:  # noqa: ANN401
    """Regression tasks with one variable: true curve, support points, and the predictions on a grid."""
    few = episode.map(lambda tensor: tensor[:tasks])
    assert isinstance(few.query_x, Tensor)
    low, high = few.query_x.amin(1, keepdim=True), few.query_x.amax(1, keepdim=True)
    grid = low + (high - low) * torch.linspace(0, 1, points, device=low.device).view(1, -1, 1)
    asked = few._replace(query_x=grid)
    outputs = module.adaptation_outputs(asked) if isinstance(module, AdaptsInSteps) else [module(asked)]
    last = len(outputs) - 1
    names = {0: "before adaptation"} | {
        step: f"after {step} step{'s' * (step > 1)}" for step in sorted({1, last}) if step
    }
    curves = {name: outputs[step] for step, name in names.items() if step <= last} if last else {"method": outputs[0]}
    shown: Any = few.map(_plain)
    return drawing.regression_figure(
        shown.support_x, shown.support_y, shown.query_x, shown.query_y, _plain(grid),
        {name: _plain(point_of(values)) for name, values in curves.items()},
    )  # fmt: skip


def _plain(tensor: Tensor) -> Tensor:
    return tensor.squeeze(-1).float().cpu()
