"""The parser of the command, and the configuration that it saves."""

import contextlib
import os
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback

from metatransfer.callbacks.run.run_folder import run_folder
from metatransfer.cli.config_files import check_config, check_config_text
from metatransfer.cli.rewriting import rewrite_config


class ParserError(Exception):
    """An error message of jsonargparse."""


class ArgumentParser(LightningArgumentParser):
    """A parser that checks and rewrites configurations before parsing, and raises errors."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **kwargs)
        self.started_in = Path.cwd()
        self.replaced: dict[str, str] = {}

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
            content = rewrite_config(content, replaced=self.replaced)
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
        path = run_folder(trainer) / self.config_filename
        if trainer.is_global_zero:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.parser.save(self.config, str(path), skip_unset=False, overwrite=True, multifile=False)
        self.already_saved = True
