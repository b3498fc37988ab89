"""Pictures worth looking at, to TensorBoard and as PNG files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from metatransfer.batches import Episode
from metatransfer.callbacks.run.report import Report
from metatransfer.callbacks.run.run_folder import agree_on_run_folder, run_folder
from metatransfer.functional.losses import is_regression
from metatransfer.methods.base import EpisodicModule

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class EpisodeFigures(Callback):
    """Draws, at the end of every evaluation, what the method sees and how far it has come.

    ``figures/<stage>_episode.png``: a task of images with predictions and mistakes, or, for regression in one
    variable, some tasks with the true curve and the method's before adaptation, after 1 and after all inner steps;
    ``adaptation.png``: the score before and after each inner step, for methods that have them; ``learning_curve.png``:
    validation against the baselines. TensorBoard gets the same.
    """

    def __init__(self) -> None:
        self._episode: Episode | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Agrees with the other processes on the folder."""
        agree_on_run_folder(trainer)

    def _keep(self, trainer: Trainer, batch: Any, batch_idx: int) -> None:  # noqa: ANN401
        first = batch[0] if isinstance(batch, list) and batch else batch
        if batch_idx == 0 and trainer.is_global_zero and not trainer.sanity_checking and isinstance(first, Episode):
            self._episode = self._episode or first

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401
        batch: Any,  # noqa: ANN401
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the first meta-batch."""
        self._keep(trainer, batch, batch_idx)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401
        batch: Any,  # noqa: ANN401
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the first meta-batch."""
        self._keep(trainer, batch, batch_idx)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the validation."""
        self._draw(trainer, pl_module, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the test."""
        self._draw(trainer, pl_module, "test")

    @torch.no_grad()
    def _draw(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        episode, self._episode = self._episode, None
        if episode is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        # matplotlib costs start-up time that --help need not pay
        from metatransfer.drawing import episodes as drawing

        figures = {}
        regression = is_regression(episode.query_y)
        if episode.support_x.dim() == 5 and not regression:
            first = episode.map(lambda tensor: tensor[:1])
            predicted = module(first)[0].argmax(-1).cpu()
            shown = first.map(lambda tensor: tensor[0].cpu())
            figures[f"{stage}_episode"] = drawing.episode_figure(
                shown.support_x, shown.support_y, shown.query_x, shown.query_y, predicted
            )
        elif regression and episode.support_x.shape[2:] == episode.support_y.shape[2:] == (1,):
            figures[f"{stage}_episode"] = _regression_figure(cast(EpisodicModule[Any], module), episode)
        name = "mse" if regression else "accuracy"
        adaptation_curve = getattr(module, "adaptation_curve", None)
        if callable(adaptation_curve):
            figures["adaptation"] = drawing.adaptation_figure(adaptation_curve(episode).cpu(), name)
        report = next((callback for callback in trainer.callbacks if isinstance(callback, Report)), None)  # type: ignore[attr-defined]
        points = [(entry["step"], entry["metrics"][name]) for entry in report.history] if report else []
        if len(points) > 1 and report is not None:
            figures["learning_curve"] = drawing.learning_curve_figure(
                [step for step, _ in points],
                # what is not a number leaves a gap
                [math.nan if number["value"] is None else number["value"] for _, number in points],
                [number.get("ci95") or 0.0 for _, number in points],
                {label: float(numbers[name]["value"] or 0.0) for label, numbers in report.measured.items()},
                name,
            )
        publish_figures(trainer, figures)


def publish_figures(trainer: Trainer, figures: Mapping[str, Figure]) -> None:
    """Writes figures into the run's folder and to TensorBoard.

    Args:
        trainer: the run.
        figures: by name.
    """
    from PIL import Image

    from metatransfer.drawing import episodes as drawing

    folder = run_folder(trainer) / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        pixels = drawing.to_pixels(figure)
        Image.fromarray(pixels).save(folder / f"{name}.png", optimize=True)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(name, pixels, trainer.global_step, dataformats="HWC")


def _regression_figure(module: EpisodicModule[Any], episode: Episode, tasks: int = 3, points: int = 200) -> Figure:
    """The first tasks of one variable, through the method."""
    from metatransfer.drawing import episodes as drawing

    def plain(tensor: Tensor) -> Tensor:
        return tensor.squeeze(-1).float().cpu()

    few = episode.map(lambda tensor: tensor[:tasks])
    low, high = few.query_x.amin(1, keepdim=True), few.query_x.amax(1, keepdim=True)
    grid = low + (high - low) * torch.linspace(0, 1, points, device=low.device).view(1, -1, 1)
    asked = few._replace(query_x=grid)
    through = getattr(module, "adaptation_outputs", None)
    outputs = through(asked) if callable(through) else [module(asked)]
    last = len(outputs) - 1
    names = {0: "before adaptation"} | {
        step: f"after {step} step{'s' * (step > 1)}" for step in sorted({1, last}) if step
    }
    curves = {name: outputs[step] for step, name in names.items() if step <= last} if last else {"method": outputs[0]}
    shown = few.map(plain)
    return drawing.regression_figure(
        shown.support_x, shown.support_y, shown.query_x, shown.query_y, plain(grid),
        {name: plain(values) for name, values in curves.items()},
    )  # fmt: skip
