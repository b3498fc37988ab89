"""The command: ``lightning fit --config configs/maml.yaml``."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import torch
from jsonargparse import Namespace, _typehints
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar, RichProgressBar
from lightning.pytorch.cli import (
    ArgsType,
    LightningArgumentParser,
    LightningCLI,
    ReduceLROnPlateau,
    SaveConfigCallback,
)
from lightning.pytorch.utilities import rank_zero_only

import metatransfer  # noqa: F401 - importing the rooms is the registry of short class names
from metatransfer.callbacks import (
    BestCheckpoint,
    ClassifierFigures,
    EpisodeFigures,
    FinishBatch,
    PredictionWriter,
    Report,
    StartChecks,
)
from metatransfer.callbacks.adaptation_gain import AdaptationGain
from metatransfer.callbacks.domain_diagnostics import DomainDiagnostics
from metatransfer.callbacks.run.run_folder import run_folder
from metatransfer.checks import check_file, check_positive, check_seed, check_writable
from metatransfer.cli.config_files import check_config, check_config_text
from metatransfer.cli.linking import follow_data
from metatransfer.cli.messages import explain, explain_exception, import_class, refused_null
from metatransfer.errors import UserError
from metatransfer.methods.domain import DomainAdaptationModule
from metatransfer.nn.weights import no_weight_files
from metatransfer.trust import check_classes

_CHECKING = (
    "lightning",
    "torch/optim",
    "torch/distributions",
    "torchvision",
)  # packages that check what they are given
_KEPT_CHECKPOINTS = ("last", "hpc", "registry")  # words, not paths, to Lightning


class ArgumentParser(LightningArgumentParser):
    """The parser, with complaints of one sentence."""

    def parse_path(self, path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Namespace:  # noqa: ANN401
        """Reads a configuration file that has been looked at."""
        if os.path.isfile(path):  # not one behind a URL or a pipe
            check_config(Path(path))
        settings: Namespace = super().parse_path(path, *args, **kwargs)
        return settings

    def parse_string(self, content: str, path: str | os.PathLike[str] = "", **kwargs: Any) -> Namespace:  # noqa: ANN401
        """Reads a configuration given as text, which has been looked at as well."""
        if not path:
            check_config_text(content, "--config")
        settings: Namespace = super().parse_string(content, path, **kwargs)
        return settings

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Ends with the complaint in one sentence.

        Args:
            message: what jsonargparse reports.
            ex: what caused it.

        Raises:
            UserError: always.
        """
        if not self.exit_on_error:  # a parser inside another's type check, which needs the report as it is
            super().error(message, ex)
        known = [option for action in self._actions for option in action.option_strings]
        for action in self._actions:
            for parser in (action.choices or {}).values() if isinstance(action.choices, dict) else ():
                known += [option for inner in parser._actions for option in inner.option_strings]
        raise UserError(explain(message, known)) from ex


class SaveConfig(SaveConfigCallback):
    """Saves the whole configuration into the run's folder, also where no logger has made one."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes ``config.yaml`` once."""
        if self.already_saved:
            return
        folder = run_folder(trainer)
        if trainer.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)
            self.parser.save(
                self.config, str(folder / self.config_filename), skip_unset=False, overwrite=True, multifile=False
            )
        self.already_saved = True


class MetaTransferCLI(LightningCLI):
    """LightningCLI with short class names, honest checkpoints and one-sentence errors."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the section ``checkpoint``."""
        parser.add_lightning_class_args(BestCheckpoint, "checkpoint")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses, without Lightning's warning that a program's own arguments exist.

        Raises:
            UserError: a value that Lightning would trip over later.
        """
        with warnings.catch_warnings(), _plateau_by_short_name():
            warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
            super().parse_arguments(parser, args)
        settings = self.config[str(self.config.get("subcommand"))]
        check_seed(seed_everything=int(settings.seed_everything))  # true and false are words of Lightning's
        if not isinstance(settings.trainer, Namespace):
            raise UserError(f"trainer must hold names with values, but is {settings.trainer}.")
        for name in ("val_check_interval", "accumulate_grad_batches"):
            value = settings.trainer[name]
            check_positive(**{f"trainer.{name}": value if isinstance(value, int | float) else None})

    def _parse_ckpt_path(self) -> None:
        """Checks the checkpoint and lets the command line win.

        Lightning would put the checkpoint's hyper-parameters over those of the YAML and the command line, so that
        ``test --model.inner_steps 10`` would silently test with those of the training.

        Raises:
            UserError: there is no such file, or it is no checkpoint.
        """
        settings = self.config.get(str(self.config.get("subcommand")), {})
        path = settings.get("ckpt_path")
        if path == "best":
            raise UserError("ckpt_path 'best' is known inside a fit only: give the file (its fit printed the name).")
        if not path or path in _KEPT_CHECKPOINTS or "://" in path:
            return
        check_file(path, "checkpoint")
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:
            raise UserError(
                f"'{path}' cannot be read as a checkpoint of tensors and plain values: give a file that fit wrote."
            ) from error
        missing = {"state_dict", "pytorch-lightning_version"} - set(content if isinstance(content, dict) else ())
        if missing:
            raise UserError(
                f"'{path}' holds no {sorted(missing, reverse=True)[0]!r} and is not a Lightning checkpoint."
            )

    def before_instantiate_classes(self) -> None:
        """Fills in what follows from the data, and looks at the folders that will be written to."""
        settings = self.config[str(self.subcommand)]
        check_classes(settings)
        if getattr(rank_zero_only, "rank", 0) == 0:  # the others write nothing
            for name, folder in _folders(settings):
                check_writable(folder, name)
        if "verbose" in settings:
            settings.verbose = False  # the report is the one table
        settings.weights_only = True  # nobody's checkpoint runs code
        if self.subcommand == "predict" and not settings.ckpt_path:
            print("warning: no --ckpt_path is given, so untrained weights will answer", file=sys.stderr)
        for section in ("model", "data"):
            _check_nulls(settings.get(section), section)
        if settings.get("data"):
            follow_data(settings.model, settings.data)

    def instantiate_classes(self) -> None:
        """Builds everything; where a checkpoint brings the weights, the file that they started from may be gone."""
        path = self.config[str(self.subcommand)].get("ckpt_path")
        # the last checkpoint, asked for by a word, may turn out not to exist
        with no_weight_files() if path and path not in _KEPT_CHECKPOINTS else contextlib.nullcontext():
            super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:  # noqa: ANN401
        """Adds the callbacks that every run has, unless the user turned them off or brings their own.

        Raises:
            UserError: settings that the Trainer refuses.
        """
        self.model.run_seed = self._get(self.config, "seed_everything")
        trainer = self._get(self.config_init, "trainer")
        given = trainer.get("callbacks") or []
        given = given if isinstance(given, list) else [given]
        wanted: list[type[Callback]] = [FinishBatch, Report, EpisodeFigures, ClassifierFigures, PredictionWriter]
        if self.subcommand == "fit" and isinstance(self.model, DomainAdaptationModule):
            # the diagnostics look at the gain's twin, and the report names the checkpoint that it chose
            wanted[1:1] = [AdaptationGain, DomainDiagnostics]
        extra = [
            AdaptationGain.unasked() if kind is AdaptationGain else kind()
            for kind in wanted
            if not any(isinstance(callback, kind) for callback in given)
        ]
        if not any(isinstance(callback, StartChecks) for callback in given):
            given = [StartChecks(), *given]  # before the callbacks whose metrics it looks for
        if trainer.get("enable_progress_bar") is not False and not any(isinstance(c, ProgressBar) for c in given):
            extra.append(RichProgressBar())
        own_checkpoint = any(isinstance(callback, ModelCheckpoint) for callback in given)
        if trainer.get("enable_checkpointing") is not False and not own_checkpoint:
            extra.append(self._get(self.config_init, "checkpoint"))
        config = {**trainer, **kwargs, "callbacks": list(given)}
        try:
            return self._instantiate_trainer(config, [] if config.get("barebones") else extra)
        except (ValueError, TypeError) as error:
            raise UserError(f"trainer: {error}") from error


@contextlib.contextmanager
def _plateau_by_short_name() -> Iterator[None]:
    """Takes ``ReduceLROnPlateau`` for Lightning's, the only one of that name that knows what to monitor."""
    resolve = _typehints.resolve_class_path_by_name

    def resolved(kind: Any, name: str) -> str:  # noqa: ANN401
        known = {ReduceLROnPlateau.__name__: f"{ReduceLROnPlateau.__module__}.{ReduceLROnPlateau.__name__}"}
        return known.get(name) or resolve(kind, name)

    with mock.patch.object(_typehints, "resolve_class_path_by_name", resolved):
        yield


def _check_nulls(settings: Any, path: str) -> None:  # noqa: ANN401
    """Refuses null where an argument has a value by default.

    Raises:
        UserError: with the argument.
    """
    if not isinstance(settings, Namespace) or "class_path" not in settings:
        return
    kind = import_class(settings.class_path)
    for name, value in vars(settings.get("init_args") or settings).items():
        if value is None and isinstance(kind, type) and refused_null(kind, name):
            raise UserError(f"{path}.{name} is null, but needs a value: leave it out for its default, or give one.")
        _check_nulls(value, f"{path}.{name}")


def _folders(settings: Namespace) -> Iterator[tuple[str, str | Path]]:
    """The folders that a run will write to.

    Yields:
        The argument that names a folder, and the folder.
    """
    trainer, found = settings.trainer, []
    for name in ("logger", "callbacks"):
        given = trainer.get(name)
        for item in given if isinstance(given, list) else [given]:
            arguments = item.get("init_args") if isinstance(item, Namespace) else None
            for key in ("save_dir", "dirpath"):
                if arguments is not None and arguments.get(key):
                    found.append((f"trainer.{name}.{key}", arguments.get(key)))
    if "checkpoint" in settings and settings.checkpoint.dirpath:
        found.append(("checkpoint.dirpath", settings.checkpoint.dirpath))
    elsewhere = trainer.default_root_dir is None and any(name == "trainer.logger.save_dir" for name, _ in found)
    if not elsewhere:
        yield "trainer.default_root_dir", trainer.default_root_dir or Path.cwd()
    yield from found


def main(args: ArgsType = None) -> None:
    """Runs the command line.

    Args:
        args: arguments, those of the process where left out.

    Raises:
        SystemExit: with status 2 after a user's mistake, told in one sentence on the standard error.
    """
    # Lightning's own use of torch's pytree, which no user can change
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    # layers that a policy freezes are so on purpose
    warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")
    # an advertisement at every start
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda record: "litlogger" not in record.msg)
    # a user's own classes by import path, from where the command is called; last, so that they shadow nothing
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        MetaTransferCLI(
            LightningModule,
            LightningDataModule,
            save_config_callback=SaveConfig,
            parser_class=ArgumentParser,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            args=args,
        )
    except Exception as error:
        mistake = _mistake(error)
        if mistake is None:
            raise
        print(f"error: {mistake}", file=sys.stderr)
        raise SystemExit(2) from None


def _raised_in(error: BaseException, packages: tuple[str, ...]) -> bool:
    """Whether an exception comes from a check inside one of the packages, not from our code or deeper down."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    path = frame.tb_frame.f_code.co_filename.replace(os.sep, "/") if frame is not None else ""
    return any(f"site-packages/{package}/" in path for package in packages)


def _mistake(error: BaseException | None) -> str | None:
    """The user's mistake behind an exception: the parser wraps what constructors raise into reports of its own."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        advice = "check its permissions" if isinstance(error, PermissionError) else "check the path"
        return f"'{error.filename}': {error.strerror[0].lower()}{error.strerror[1:]}; {advice}."
    while error is not None:
        if isinstance(error, UserError):
            return str(error)
        refused = isinstance(error, ValueError | ImportError) and _raised_in(error, _CHECKING)
        if refused or isinstance(error, MisconfigurationException):
            return explain_exception(str(error))
        # what a bug happened to be raised under is not its cause; the parser drops the cause of its reports
        error = error.__cause__ or (error.__context__ if _raised_in(error, ("jsonargparse",)) else None)
    return None
