"""The command: ``lightning fit --config configs/maml.yaml``."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import re
import sys
import warnings
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.callbacks import ProgressBar as AnyProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_only

import metatransfer  # importing the rooms is the registry of short class names
from metatransfer.callbacks import BestCheckpoint, StartChecks, standard_callbacks
from metatransfer.callbacks.run.checkpoint import read_checkpoint
from metatransfer.callbacks.run.display import ProgressBar
from metatransfer.callbacks.run.run_folder import run_folder
from metatransfer.checks import check_positive, check_seed, check_writable
from metatransfer.cli.classes import classes_in, import_class, needs_value, type_of
from metatransfer.cli.config_files import check_config, check_config_text
from metatransfer.cli.linking import arguments_of, build_data, follow_data
from metatransfer.cli.messages import explain, explain_exception
from metatransfer.cli.rewriting import rewrite_arguments, rewrite_config
from metatransfer.errors import UserError
from metatransfer.nn.weights import no_weight_files
from metatransfer.trust import check_classes

# packages that check their arguments
_CHECKING = ("lightning", "torch/optim", "torch/distributions", "torchvision")
_KEPT_CHECKPOINTS = ("last", "hpc", "registry")  # keywords of Lightning, not paths


class ParserError(Exception):
    """An error message of jsonargparse."""


class ArgumentParser(LightningArgumentParser):
    """A parser that checks and rewrites configurations before parsing, and raises errors."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **kwargs)
        self.started_in = Path.cwd()

    def parse_path(self, path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Namespace:  # noqa: ANN401
        """Reads a configuration file."""
        if os.path.isfile(path):  # not a URL or a pipe
            check_config(Path(path))
        settings: Namespace = super().parse_path(path, *args, **kwargs)
        return settings

    def parse_string(self, content: str, path: str | os.PathLike[str] = "", **kwargs: Any) -> Namespace:  # noqa: ANN401
        """Reads a configuration given as text."""
        if not path:
            check_config_text(content, "--config")
        with contextlib.chdir(self.started_in):  # the parser changes to the folder of the file
            content = rewrite_config(content)
        settings: Namespace = super().parse_string(content, path, **kwargs)
        return settings

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises an error instead of ending the process."""
        if not self.exit_on_error:  # a nested parser, whose message is part of another
            super().error(message, ex)
        raise ParserError(message) from ex


class SaveConfig(SaveConfigCallback):
    """Saves the whole configuration into the run's folder, even without a logger."""

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
    """LightningCLI with short class names and one-sentence errors; arguments override those of a checkpoint."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the section ``checkpoint``."""
        parser.add_class_arguments(BestCheckpoint, "checkpoint")
        self._help = parser.format_help

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses the command line.

        Raises:
            UserError: an argument is invalid for the parser or for Lightning.
        """
        typed = rewrite_arguments(sys.argv[1:] if args is None else [str(part) for part in list(args)])
        with warnings.catch_warnings():
            # a program's own arguments are meant to replace those of the command line
            warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
            try:
                super().parse_arguments(parser, typed)
            except ParserError as error:
                raise UserError(explain(str(error), re.findall(r"--[\w.]+", self._help()))) from error
        settings = self.config[str(self.config.get("subcommand"))]
        check_seed(seed_everything=int(settings.seed_everything))  # Lightning also accepts true and false
        if not isinstance(settings.trainer, Namespace):
            raise UserError(f"the section trainer must have names with values, but is {settings.trainer}.")
        for name in ("val_check_interval", "accumulate_grad_batches"):
            value = settings.trainer[name]
            check_positive(**{f"trainer.{name}": value if isinstance(value, int | float) else None})

    def _parse_ckpt_path(self) -> None:
        """Checks the checkpoint, and keeps the values of the command line.

        Lightning would replace the values of the YAML file and the command line by the checkpoint's hyperparameters:
        ``test --model.inner.steps 10`` would silently use the number of steps of the training.

        Raises:
            UserError: the file does not exist or is not a checkpoint.
        """
        settings = self.config.get(str(self.config.get("subcommand")), {})
        path = settings.get("ckpt_path")
        if path == "best":
            raise UserError(
                "ckpt_path 'best' only works within a fit: give the path of the checkpoint that fit printed."
            )
        if not path or path in _KEPT_CHECKPOINTS or "://" in path:
            return
        read_checkpoint(path)

    def before_instantiate_classes(self) -> None:
        """Checks the classes, the output folders and null values, before anything is built."""
        settings = self.config[str(self.subcommand)]
        check_classes(settings)
        if getattr(rank_zero_only, "rank", 0) == 0:  # other processes write nothing
            for name, folder in _folders(settings):
                check_writable(folder, name)
        if "verbose" in settings:
            settings.verbose = False  # the report is the one table
        settings.weights_only = True  # loading a checkpoint must not run code
        if self.subcommand == "predict" and not settings.ckpt_path:
            print("warning: without --ckpt_path, predictions come from untrained weights", file=sys.stderr)
        for section in ("model", "data"):
            _check_nulls(settings.get(section), section)

    def instantiate_classes(self) -> None:
        """Builds the data first: arguments of the model follow from it."""
        settings = self.config[str(self.subcommand)]
        described, data = settings.get("data"), None
        if described:
            data = build_data(described)
            follow_data(settings.model, data)
            # Lightning would dump the configuration for the checkpoint later, without the data; there is no public way
            # to pass it a data module that is already built
            self._dump_config()
            settings.data = None
        path = settings.get("ckpt_path")
        try:
            # with a checkpoint, the files of pretrained weights are not needed and may be gone; "last" may not exist
            with no_weight_files() if path and path not in _KEPT_CHECKPOINTS else contextlib.nullcontext():
                super().instantiate_classes()
        finally:
            if described:
                settings.data = described  # to be saved
        self.datamodule = data

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:  # noqa: ANN401
        """Adds the standard callbacks, unless the user turned them off or passes their own.

        Raises:
            UserError: the Trainer does not accept a setting.
        """
        settings = self.config_init[str(self.subcommand)]
        self.model.run_seed = self.config[str(self.subcommand)].seed_everything
        trainer = settings.trainer
        given = trainer.get("callbacks") or []
        given = given if isinstance(given, list) else [given]

        def lacks(switch: str, kind: type[Callback]) -> bool:
            return trainer.get(switch) is not False and not any(isinstance(callback, kind) for callback in given)

        extra = standard_callbacks(given)
        if lacks("enable_progress_bar", AnyProgressBar):
            extra.insert(0, ProgressBar())  # closed before the others print
        if lacks("enable_checkpointing", ModelCheckpoint):
            extra.append(settings.checkpoint)
        if lacks("", StartChecks):
            given = [StartChecks(), *given]  # before the callbacks whose metrics it looks for
        try:
            return super().instantiate_trainer(
                callbacks=[*given, *([] if trainer.get("barebones") else extra)], **kwargs
            )
        except (ValueError, TypeError) as error:
            raise UserError(f"trainer: {error}") from error


def _check_nulls(settings: Any, path: str, kind: Any = None) -> None:  # noqa: ANN401
    # the parser accepts null everywhere
    if not isinstance(settings, Namespace):
        return
    if "class_path" in settings:
        kind = import_class(settings.class_path)
    if not isinstance(kind, type):
        return
    for name, value in vars(settings.get("init_args") or settings).items():
        if value is None and needs_value(kind, name):
            raise UserError(f"{path}.{name} is null, but needs a value: remove it to use its default, or give a value.")
        groups = [one for one in classes_in(type_of(kind, name)) if dataclasses.is_dataclass(one)]  # without class_path
        _check_nulls(value, f"{path}.{name}", groups[0] if groups else None)


def _folders(settings: Namespace) -> list[tuple[str, str | Path]]:
    """The folders that a run will write to, each after the argument that names it."""
    trainer = settings.trainer
    found = [("checkpoint.dirpath", settings.checkpoint.dirpath)] if "checkpoint" in settings else []
    for name in ("logger", "callbacks"):
        given = trainer.get(name)
        for item in given if isinstance(given, list) else [given]:
            found += [(f"trainer.{name}.{key}", arguments_of(item).get(key)) for key in ("save_dir", "dirpath")]
    found = [(name, folder) for name, folder in found if folder]
    if trainer.default_root_dir or not any(name == "trainer.logger.save_dir" for name, _ in found):
        found.insert(0, ("trainer.default_root_dir", trainer.default_root_dir or Path.cwd()))
    return found


def main(args: list[str] | None = None) -> None:
    """Runs the command line.

    Args:
        args: defaults to the arguments of the process.

    Raises:
        SystemExit: with status 2 after a user's mistake, which is printed to standard error in one sentence.
    """
    # about Lightning's own use of torch's pytree
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    # frozen layers are in eval mode on purpose
    warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")
    # an advertisement
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda record: "litlogger" not in record.msg)
    # lets users name their own classes in the current folder; last, so that nothing is shadowed
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        MetaTransferCLI(
            LightningModule,
            LightningDataModule,
            save_config_callback=SaveConfig,
            parser_class=ArgumentParser,
            parser_kwargs={"version": metatransfer.__version__},
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
    """Whether an exception was raised in one of the packages itself, not in code that it calls."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    path = frame.tb_frame.f_code.co_filename.replace(os.sep, "/") if frame is not None else ""
    return any(f"site-packages/{package}/" in path for package in packages)


def _mistake(error: BaseException | None) -> str | None:
    """The user's mistake that caused an exception, or ``None``: the parser wraps errors of constructors in its own."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        advice = "check its permissions" if isinstance(error, PermissionError) else "check the path"
        return f"'{error.filename}': {error.strerror[0].lower()}{error.strerror[1:]}; {advice}."
    while error is not None:
        if isinstance(error, UserError):
            return str(error)
        refused = isinstance(error, ValueError | ImportError) and _raised_in(error, _CHECKING)
        if refused or isinstance(error, MisconfigurationException):
            return explain_exception(str(error))
        # the context of an exception is its cause only in jsonargparse, which does not set causes
        error = error.__cause__ or (error.__context__ if _raised_in(error, ("jsonargparse",)) else None)
    return None
