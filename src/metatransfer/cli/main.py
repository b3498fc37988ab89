"""The command: ``lightning fit --config configs/maml.yaml``."""

import contextlib
import os
import re
import shlex
import signal
import sys
import threading
import traceback
import warnings
from argparse import SUPPRESS
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ModelSummary
from lightning.pytorch.callbacks import ProgressBar as AnyProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

import metatransfer  # importing the rooms is the registry of short class names
from metatransfer.callbacks import BestCheckpoint, PredictionWriter, StartChecks, standard_callbacks
from metatransfer.callbacks.run.display import ProgressBar, Summary, prepare_terminal
from metatransfer.callbacks.run.run_folder import claim_versions
from metatransfer.checks import check_positive, check_seed, check_writable
from metatransfer.cli.classes import check_nulls
from metatransfer.cli.commands import command_names, overview
from metatransfer.cli.dispatch import run_command
from metatransfer.cli.folders import best_beside, find_checkpoint, newest_checkpoint, output_folders
from metatransfer.cli.linking import build_data, follow_data
from metatransfer.cli.messages import explain
from metatransfer.cli.parser import ArgumentParser, ParserError, SaveConfig
from metatransfer.cli.rewriting import classes_given, rewrite_arguments
from metatransfer.errors import UserError
from metatransfer.methods.checkpoints import needed_files, read_checkpoint
from metatransfer.storage import DISK_FULL, short_path
from metatransfer.trust import check_classes

# packages that check their arguments
_CHECKING = ("lightning", "torch/optim", "torch/distributions", "torchvision")
_KEYWORDS = ("hpc", "registry")  # of Lightning, not paths


class MetaTransferCLI(LightningCLI):
    """LightningCLI with short class names and one-sentence errors; arguments override those of a checkpoint."""

    _checkpoint_keys: frozenset[str] | None = None

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the section ``checkpoint``, to ``fit`` ``--test_after_fit``, and to ``predict`` ``--output``."""
        parser.add_class_arguments(BestCheckpoint, "checkpoint")
        self._parsers = [*getattr(self, "_parsers", []), parser]  # in the order of the commands
        command = list(self.subcommands())[len(self._parsers) - 1]
        # the other commands accept it, too: they read the configurations of fits
        about = "whether to test the best checkpoint after the fit, as the command test does"
        parser.add_argument("--test_after_fit", type=bool, default=False, help=about if command == "fit" else SUPPRESS)
        if command == "predict":
            parser.add_argument(
                "--output", type=str | None, help="CSV file (default: predictions.csv in the run's folder)"
            )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses the command line.

        Raises:
            UserError: an argument is invalid for the parser or for Lightning.
        """
        typed = rewrite_arguments(sys.argv[1:] if args is None else [str(part) for part in list(args)])
        for one in self._parsers:
            one.replaced = classes_given(typed)
        with warnings.catch_warnings():
            # a program's own arguments are meant to replace those of the command line
            warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
            try:
                super().parse_arguments(parser, typed)
            except ParserError as error:
                raise UserError(explain(str(error), re.findall(r"--[\w.]+", self._parsers[0].format_help()))) from error
        settings = self.config[str(self.config.get("subcommand"))]
        check_seed(seed_everything=int(settings.seed_everything))  # Lightning also accepts true and false
        if not isinstance(settings.trainer, Namespace):
            raise UserError(f"the section trainer must have names with values, but is {settings.trainer}.")
        for name in ("val_check_interval", "accumulate_grad_batches"):
            value = settings.trainer[name]
            check_positive(**{f"trainer.{name}": value if isinstance(value, int | float) else None})

    def _parse_ckpt_path(self) -> None:
        """Finds and checks the checkpoint, and keeps the values of the command line.

        Lightning would replace the values of the YAML file and the command line by the checkpoint's hyperparameters:
        ``test --model.inner.steps 10`` would silently use the number of steps of the training.

        Raises:
            UserError: the file does not exist or is not a checkpoint, or no earlier run has one.
        """
        command = str(self.config.get("subcommand"))
        settings = self.config[command]
        path = settings.get("ckpt_path")
        if not path and command != "fit":
            newest = newest_checkpoint(settings)
            hint = f"; for those of the newest run, add --ckpt_path {shlex.quote(short_path(newest))}" if newest else ""
            _say(f"warning: without --ckpt_path, {command} uses the initial weights, random or pretrained{hint}")
        elif path in ("last", "best"):
            # Lightning would look in the new run's own folder, and train from the start if there is none
            settings.ckpt_path = str(find_checkpoint(path, settings))
            _say(f"--ckpt_path {path} is {short_path(settings.ckpt_path)}")
        path = settings.get("ckpt_path")
        if path and path not in _KEYWORDS:  # files of pretrained weights are mostly not needed then, and may be gone
            self._checkpoint_keys = frozenset() if "://" in path else frozenset(read_checkpoint(path))

    def before_instantiate_classes(self) -> None:
        """Checks the classes, the output folders and null values, before anything is built."""
        settings = self.config[str(self.subcommand)]
        check_classes(settings)
        if getattr(rank_zero_only, "rank", 0) == 0:  # other processes write nothing
            for name, folder in output_folders(settings):
                check_writable(folder, name)
        if "verbose" in settings:
            settings.verbose = False  # the report is the one table
        settings.weights_only = True  # loading a checkpoint must not run code
        for section in ("model", "data"):
            check_nulls(settings.get(section), section)

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
        try:
            with contextlib.nullcontext() if self._checkpoint_keys is None else needed_files(self._checkpoint_keys):
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
        if settings.get("output"):
            given = [*given, PredictionWriter(settings.output)]

        def lacks(switch: str, kind: type[Callback]) -> bool:
            return trainer.get(switch) is not False and not any(isinstance(callback, kind) for callback in given)

        extra = standard_callbacks(given)
        if lacks("enable_progress_bar", AnyProgressBar):
            extra.insert(0, ProgressBar())  # closed before the others print
        if lacks("enable_model_summary", ModelSummary):
            extra.append(Summary())
        if lacks("enable_checkpointing", ModelCheckpoint):
            extra.append(settings.checkpoint)
        if lacks("", StartChecks):
            given = [StartChecks(), *given]  # before the callbacks whose metrics it looks for
        try:
            built = super().instantiate_trainer(
                callbacks=[*given, *([] if trainer.get("barebones") else extra)], **kwargs
            )
        except (ValueError, TypeError) as error:
            raise UserError(f"trainer: {error}") from error
        claim_versions(built)
        return built

    def after_fit(self) -> None:
        """Tests the best checkpoint, if ``--test_after_fit`` asks for it and the fit was not stopped."""
        trainer = self.trainer
        if not self.config[str(self.subcommand)].test_after_fit or trainer.interrupted or trainer.received_sigterm:
            return
        last = getattr(trainer.checkpoint_callback, "last_model_path", "")
        path = best_beside(Path(last)) or last if last else None
        trainer.test(self.model, datamodule=self.datamodule, ckpt_path=path, verbose=False, weights_only=True)


def _with_options_of(typed: list[str]) -> type[MetaTransferCLI]:
    """The command line with the options of the given command only: to set up those of all takes four times as long."""
    every = MetaTransferCLI.subcommands()
    given = str(typed[0]) if typed else ""
    if given not in every:
        return MetaTransferCLI

    class OneCommand(MetaTransferCLI):
        @staticmethod
        def subcommands() -> dict[str, set[str]]:
            return {given: every[given]}

    return OneCommand


def run_lightning(kind: type[MetaTransferCLI], args: list[str] | None) -> MetaTransferCLI:
    """Runs a command of Lightning's Trainer; ``args`` defaults to the arguments of the process."""
    return kind(
        LightningModule,
        LightningDataModule,
        save_config_callback=SaveConfig,
        parser_class=ArgumentParser,
        parser_kwargs={"version": metatransfer.__version__, "epilog": overview()},
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=0,
        auto_configure_optimizers=False,
        args=args,
    )


@rank_zero_only
def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr)


def main(args: list[str] | None = None) -> None:
    """Runs the command line.

    Args:
        args: defaults to the arguments of the process.

    Raises:
        SystemExit: with status 2 after a user's mistake, which is printed to standard error in one sentence; with 143
            after SIGTERM.
    """
    # about Lightning's own use of torch's pytree
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    # frozen layers are in eval mode on purpose
    warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")
    prepare_terminal()
    # lets users name their own classes in the current folder; last, so that nothing is shadowed
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    before, threading.excepthook = threading.excepthook, _in_thread
    typed = [str(part) for part in (sys.argv[1:] if args is None else args)]
    stopped = False
    try:
        if typed and typed[0] in command_names():
            run_command(typed[0], typed[1:])
        else:
            # after the fit, while its twins were trained
            stopped = run_lightning(_with_options_of(typed), args).trainer.received_sigterm
    except SIGTERMException:
        stopped = True
    except Exception as error:
        mistake = mistake_of(error)
        if mistake is None:
            raise
        print(f"error: {mistake}", file=sys.stderr)
        raise SystemExit(2) from None
    finally:
        threading.excepthook = before
    if stopped:  # Lightning would exit with 0, as after a success
        raise SystemExit(128 + signal.SIGTERM)


def _in_thread(failed: threading.ExceptHookArgs) -> None:
    """Leaves mistakes to the main thread: a logger that writes in its own thread fails there once more."""
    if failed.exc_value is None or mistake_of(failed.exc_value) is None:
        threading.__excepthook__(failed)


def _raised_in(error: BaseException, packages: tuple[str, ...]) -> bool:
    """Whether an exception was raised in one of the packages itself, not in code that it calls."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    path = frames[-1].f_code.co_filename.replace(os.sep, "/") if frames else ""
    return any(f"site-packages/{package}/" in path for package in packages)


def mistake_of(error: BaseException | None) -> str | None:
    """The user's mistake that caused an exception, or ``None``: the parser wraps errors of constructors in its own."""
    full = isinstance(error, OSError) and error.errno in DISK_FULL
    if isinstance(error, OSError) and error.strerror and (error.filename is not None or full):
        advice = "check its permissions" if isinstance(error, PermissionError) else "check the path"
        place = f"'{error.filename}': " if error.filename is not None else ""
        return f"{place}{error.strerror[0].lower()}{error.strerror[1:]}; {'free some space' if full else advice}."
    if isinstance(error, RuntimeError) and re.search(r"gloo|NCCL|Connection (closed|reset) by peer", str(error)):
        return "another process of this run has ended, so this one cannot go on: to resume, add --ckpt_path last."
    while error is not None:
        if isinstance(error, UserError):
            return str(error)
        refused = isinstance(error, ValueError | ImportError) and _raised_in(error, _CHECKING)
        if refused or isinstance(error, MisconfigurationException):
            return explain(str(error))
        # the context of an exception is its cause only in jsonargparse, which does not set causes
        error = error.__cause__ or (error.__context__ if _raised_in(error, ("jsonargparse",)) else None)
    return None
