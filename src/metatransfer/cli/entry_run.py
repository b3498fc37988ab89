"""Runs one entry of a comparison for one seed: an ordinary fit and test with its own folder, and its scores."""

import contextlib
import hashlib
import json
import logging
import math
import shlex
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer

from metatransfer.callbacks.figures import Figures
from metatransfer.callbacks.gain import Gain
from metatransfer.callbacks.run.run_folder import run_folder
from metatransfer.cli.entries import Candidate
from metatransfer.cli.entry_data import merged
from metatransfer.cli.main import MetaTransferCLI, mistake_of, run_lightning
from metatransfer.data.serving.labelled import LabelledDataModule
from metatransfer.errors import UserError
from metatransfer.experiments.per_task import per_task
from metatransfer.experiments.ranking import Outcome
from metatransfer.experiments.units import OWN, Beside, UnitScores, untrained_baselines, without_support
from metatransfer.methods.fitted import FittedModule
from metatransfer.storage import short_path, write_atomically

Task = Literal["method", "baselines", "support-free", "oracle", "tuning"]
T = TypeVar("T")
_FILE = "outcomes.json"
_REPORT = {"class_path": "metatransfer.callbacks.Report", "init_args": {"baselines": False}}
_FIGURES = {"class_path": "metatransfer.cli.entry_run.FiguresAtTheEnd"}
_NO_TWINS = {"class_path": "metatransfer.callbacks.AdaptationGain", "init_args": {"seeds": 0}}


class FiguresAtTheEnd(Figures):
    """Draws a fit once: drawing after each validation takes longer than many a training between two of them."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws nothing."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the last validation, and the learning curve."""
        self._draw(trainer, pl_module, "val")


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        name: of the entry.
        task: what is run: the ``method``, ``baselines`` beside its untrained form, the trained method without support
            labels (``support-free``), the method on the labelled target (``oracle``), or a trial of the method without
            test (``tuning``).
        config: the whole configuration.
        arguments: of the entry.
        seed: of the run.
        folder: where it writes.
        per_task: steps on each support set, if a classifier is fitted to each.
        checkpoint: to test, for ``support-free``.
    """

    name: str
    task: Task
    config: Mapping[str, Any]
    arguments: tuple[str, ...]
    seed: int
    folder: Path
    per_task: int | None = None
    checkpoint: str | None = field(default=None, compare=False)

    def stored(self) -> list[Outcome]:
        """The outcomes of an earlier run; empty if there is none, or it failed: what was missing may be there now."""
        path = self.folder / _FILE
        if not path.exists():
            return []
        found = [Outcome(**one) for one in json.loads(path.read_text(encoding="utf-8"))]
        return [] if any(one.failure for one in found) else found


def configured(
    candidate: Candidate, data: Mapping[str, Any], seed: int, limits: Mapping[str, Any], trainer: Mapping[str, Any]
) -> dict[str, Any]:
    """The configuration of a run: the entry's, with the data, seed and budget of the comparison."""
    config = dict(candidate.config)
    own = dict(config.get("trainer") or {})
    kept = [one for one in own.get("callbacks") or [] if not _is_gain(one)]
    fixed = {
        "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0,
        "min_epochs": None, "min_steps": None,  # would outlast the budget
        "devices": 1, "num_nodes": 1,  # on several, Lightning would start this command once for each
    }  # fmt: skip
    settings = merged({**own, **limits, **fixed, "callbacks": [*kept, _REPORT, _FIGURES, _NO_TWINS]}, trainer)
    return {**config, "seed_everything": seed, "trainer": settings, "data": dict(data)}


def _is_gain(described: Any) -> bool:  # noqa: ANN401
    """Whether a callback trains twins, which a comparison has as its own entries."""
    name = str(described.get("class_path") if isinstance(described, Mapping) else described).rpartition(".")[2]
    return name in {kind.__name__ for kind in Gain.__subclasses__()}


def run_job(job: Job) -> list[Outcome]:
    """Runs a job and stores its outcomes; a failure is an outcome, too."""
    began = time.perf_counter()
    found = logged(job, lambda: _run(job))
    if isinstance(found, str):
        found = [Outcome(job.name, job.seed, failure=found, seconds=round(time.perf_counter() - began, 2))]
    write_atomically(job.folder / _FILE, json.dumps([asdict(one) for one in found]) + "\n")
    return found


def logged(job: Job, run: Callable[[], T]) -> T | str:
    """The result of a run whose output is in ``log.txt`` of the job's new folder, or why it failed, in a sentence."""
    shutil.rmtree(job.folder, ignore_errors=True)  # of a run that was killed
    job.folder.mkdir(parents=True, exist_ok=True)  # where a file could not be removed
    with (job.folder / "log.txt").open("w", encoding="utf-8") as log, _into(log):
        try:
            return run()
        except Exception as error:
            traceback.print_exc()
            return mistake_of(error) or f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


@contextlib.contextmanager
def _into(log: Any) -> Iterator[None]:  # noqa: ANN401
    with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        yield


def _run(job: Job) -> list[Outcome]:
    found: list[Outcome] = []
    run_with(job, lambda *built: found.extend(_measured(job, *built)))
    return found


class _Fit(MetaTransferCLI):
    """The command ``fit`` alone."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {"fit": MetaTransferCLI.subcommands()["fit"]}


def run_with(job: Job, use: Callable[[Trainer, Any, Any], object]) -> None:
    """Builds the Trainer, the method and the data of a job, as ``fit`` does, and gives them to a function."""

    class Running(_Fit):
        def fit(self, model: Any, datamodule: Any = None, **_: Any) -> None:  # noqa: ANN401
            use(self.trainer, model if job.per_task is None else per_task(model, job.per_task), datamodule)

    run_lightning(Running, _command(job, job.folder))


def settings_of(job: Job) -> Namespace:
    """The whole configuration of a job with its arguments and all defaults; nothing is built.

    Raises:
        UserError: an argument is invalid.
    """
    found: list[Namespace] = []

    class Parsed(Exception):
        """Ends the command."""

    class Parsing(_Fit):
        def before_instantiate_classes(self) -> None:
            found.append(self.config["fit"])
            raise Parsed

    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(Parsed):
        run_lightning(Parsing, _command(job, Path(folder)))
    return found[0]


def _command(job: Job, folder: Path) -> list[str]:
    """The command ``fit`` of a job, with its configuration in a folder."""
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)  # the seed of every run
    config = folder / "entry.yaml"
    write_atomically(config, yaml.safe_dump(dict(job.config), sort_keys=False))
    return ["fit", "--config", str(config), "--trainer.default_root_dir", str(job.folder), *job.arguments]


_BESIDE: dict[Task, Beside] = {"baselines": untrained_baselines, "support-free": without_support}


def _measured(job: Job, trainer: Trainer, module: Any, data: Any) -> list[Outcome]:  # noqa: ANN401
    if data.info().num_targets:
        raise UserError("a comparison ranks accuracies, but these tasks are regressions: compare them by their runs.")
    if trainer.world_size > 1:
        raise UserError("a comparison trains each entry in one process: leave out trainer.devices and num_nodes.")
    scores = UnitScores(_BESIDE.get(job.task, lambda _: {}))
    trainer.callbacks.append(scores)  # type: ignore[attr-defined]
    began = time.perf_counter()
    # a fitted classifier has no answers before its fit, not even for the baselines beside it
    trained = job.per_task is None and (job.task in ("method", "oracle") or isinstance(module, FittedModule))
    if trained:
        trainer.fit(module, datamodule=data.oracle_twin() if job.task == "oracle" else data)
    chooser: Any = trainer.checkpoint_callback
    best = (getattr(chooser, "best_model_path", "") or getattr(chooser, "last_model_path", "")) if trained else ""
    steps = trainer.global_step
    trainer.test(module, datamodule=data, ckpt_path=best or job.checkpoint, verbose=False)
    shown = {name: values for name, values in scores.found.items() if (name == OWN) != (job.task in _BESIDE)}
    _check_finite(shown)
    shared = Outcome(job.name, job.seed, units=_units(data, scores), seconds=round(time.perf_counter() - began, 2))
    if job.task in _BESIDE:
        return [replace(shared, entry=name, scores=values, baseline=True) for name, values in shown.items()]
    config = short_path(run_folder(trainer) / "config.yaml")
    command = ["lightning", "test", "--config", config, "--ckpt_path", short_path(best)] if best else []
    return [
        replace(
            shared, scores=shown[OWN], steps=steps, curve=scores.curve, note=_note(job, trainer, steps),
            checkpoint=short_path(best) if best else None, command=shlex.join(command),
        )
    ]  # fmt: skip


def _units(data: Any, scores: UnitScores) -> str:  # noqa: ANN401
    """The hash of the test units; of raw samples where batches depend on what is trained on, as those of a table do."""
    if not isinstance(data, LabelledDataModule) or data.encoder is None:
        return scores.units
    test = data.splits.part("test")
    digest = hashlib.sha256(test.base.fingerprint().encode() + test.indices.astype("<i8").tobytes())
    return f"{digest.hexdigest()}-{len(next(iter(scores.found.values())))}"


def _check_finite(scores: Mapping[str, Sequence[float]]) -> None:
    """Raises an error for scores that have no order."""
    if not all(math.isfinite(one) for values in scores.values() for one in values):
        raise UserError(
            "some outputs are NaN or infinite, so that they cannot be ranked: lower the learning rate, or clip "
            "gradients."
        )


def _note(job: Job, trainer: Trainer, steps: int) -> str:
    """How the training ended."""
    if job.per_task is not None:
        return "fitted to each support set, no training before"
    if job.task == "oracle":
        return "trained on labels of the target, apart from the order"
    return f"{steps} steps, {trainer.current_epoch} epochs"
