"""The command: ``lightning fit --config configs/maml.yaml``."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any, NoReturn

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar, RichProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback

import metatransfer  # noqa: F401 - importing the rooms is the registry of short class names
from metatransfer.callbacks import BestCheckpoint, EpisodeFigures, FinishBatch, PredictionWriter, Report
from metatransfer.callbacks.run_folder import run_folder
from metatransfer.checks import check_file, check_writable
from metatransfer.errors import UserError
from metatransfer.messages import explain, import_class

_KEPT_CHECKPOINTS = ("best", "last", "hpc", "registry")  # words, not paths, to Lightning


class ArgumentParser(LightningArgumentParser):
    """The parser, with complaints of one sentence."""

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
        """Parses, without Lightning's warning that a program's own arguments exist."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
            super().parse_arguments(parser, args)

    def _parse_ckpt_path(self) -> None:
        """Checks the checkpoint and lets the command line win.

        Lightning would put the checkpoint's hyper-parameters over those of the YAML and the command line, so that
        ``test --model.inner_steps 10`` would silently test with those of the training.

        Raises:
            UserError: there is no such file, or it is no checkpoint.
        """
        settings = self.config.get(str(self.config.get("subcommand")), {})
        path = settings.get("ckpt_path")
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
        """Fills in what follows from the data, and looks at the folder that will be written to."""
        settings = self.config[str(self.subcommand)]
        check_writable(settings.trainer.default_root_dir or Path.cwd(), "trainer.default_root_dir")
        if "verbose" in settings:
            settings.verbose = False  # the report is the one table
        settings.weights_only = True  # nobody's checkpoint runs code
        model, data = settings.model.get("init_args"), (settings.get("data") or {}).get("init_args")
        if self.subcommand == "predict" and not settings.ckpt_path:
            print("warning: no --ckpt_path is given, so untrained weights will answer", file=sys.stderr)
        if model is not None and data is not None and "num_outputs" in model and model.num_outputs is None:
            ways = getattr(import_class(settings.data.class_path), "num_targets", None) or data.get("num_ways")
            model.num_outputs = max(1, ways) if ways is not None else None  # the data refuses 0 in its own words

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:  # noqa: ANN401
        """Adds the callbacks that every run has, unless the user turned them off or brings their own.

        Raises:
            UserError: settings that the Trainer refuses.
        """
        self.model.run_seed = self._get(self.config, "seed_everything")
        trainer = self._get(self.config_init, "trainer")
        given = trainer.get("callbacks") or []
        given = given if isinstance(given, list) else [given]
        wanted = [FinishBatch, Report, EpisodeFigures, PredictionWriter]
        extra = [kind() for kind in wanted if not any(isinstance(callback, kind) for callback in given)]
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


def main(args: ArgsType = None) -> None:
    """Runs the command line.

    Args:
        args: arguments, those of the process where left out.

    Raises:
        SystemExit: with status 2 after a user's mistake, told in one sentence on the standard error.
    """
    # Lightning's own use of torch's pytree, which no user can change
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
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


def _mistake(error: BaseException | None) -> BaseException | None:
    """The user's mistake behind an exception: the parser wraps what constructors raise into reports of its own."""
    while error is not None:
        if isinstance(error, UserError | MisconfigurationException):
            return error
        if isinstance(error, ValueError | ImportError) and _raised_in(error, ("lightning", "torch/optim")):
            return error
        error = error.__cause__ or error.__context__
    return None
