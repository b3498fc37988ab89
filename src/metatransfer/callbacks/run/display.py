"""What a run shows in the terminal: the progress bar, and the table of its report."""

import codecs
import io
import logging
import re
import shlex
import sys
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichModelSummary, RichProgressBar
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console
from rich.table import Table

from metatransfer.methods.evaluation.base import Evaluation
from metatransfer.storage import short_path

_ASCII = {"±": "+-", "•": "-", "×": "x", "–": "-", "’": "'"}
# an advertisement, hardware that is absent, our own callback, and the end of a fit, which its table shows
_NOISE = re.compile("litlogger|[TH]PU available: False|with model summary callbacks|`Trainer.fit` stopped: `max_epochs")


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return "".join(_ASCII.get(letter, "?") for letter in error.object[error.start : error.end]), error.end


codecs.register_error("metatransfer", _in_ascii)


class _Messages(logging.Handler):
    """Prints messages to ``sys.stderr`` as it is at the time: an open progress bar moves below them."""

    def emit(self, record: logging.LogRecord) -> None:
        if not _NOISE.search(record.getMessage()):
            print(record.getMessage(), file=sys.stderr)


def prepare_terminal() -> None:
    """Makes every text printable, also on ASCII terminals, and lets Lightning's messages respect the progress bar."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="metatransfer")
    log = logging.getLogger("lightning.pytorch")
    # Lightning's own handler; others are the user's
    log.handlers[:] = [_Messages() if type(one) is logging.StreamHandler else one for one in log.handlers]


def show(*lines: str | Table) -> None:
    """Prints tables, and lines unwrapped, so that commands can be copied; brackets in names are not markup."""
    prepare_terminal()
    console = Console()
    # a file or a pipe has no width: wide enough that paths can be copied
    width = console.width if console.is_terminal else 160
    console = Console(width=width, markup=False, emoji=False, highlight=False)
    for line in lines:
        console.print(line, soft_wrap=isinstance(line, str))


class Summary(RichModelSummary):
    """Lightning's table of the model, without FLOPs, which it counts only for models with an example input."""

    @staticmethod
    def summarize(
        summary_data: list[tuple[str, list[str]]],
        total_parameters: int,
        trainable_parameters: int,
        *args: object,
        **summarize_kwargs: object,
    ) -> None:
        """Prints the table."""
        columns = [values for name, values in summary_data if name in ("Name", "Type", "Params")]
        table = Table("part", "class", "parameters")
        for row in (row for row in zip(*columns, strict=True) if row[-1].strip() != "0"):
            table.add_row(*row)
        lines = [table] if table.row_count else []
        show(*lines, f"{trainable_parameters:,} of {total_parameters:,} parameters are trained")


class ProgressBar(RichProgressBar):
    """Lightning's progress bar, closed before the report is printed: two live displays would overwrite each other."""

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The logged metrics, without the version number of the run."""
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Closes the bar."""
        self.reset_dataloader_idx_tracker()
        self.teardown(trainer, pl_module, "")

    on_test_end = on_predict_end = on_train_end

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Closes the bar after ``lightning validate``."""
        super().on_validation_end(trainer, pl_module)
        if trainer.state.fn == TrainerFn.VALIDATING:  # not the validations of a fit
            self.on_train_end(trainer, pl_module)


def _protocol_line(card: dict[str, Any]) -> str:
    """The parts of a protocol card that have no row of their own."""
    method, data, versions = card["method"], card.get("data", {}), card["versions"]
    parts = [
        f"split {data['split']}" if "split" in data else "",
        f"BatchNorm statistics: {method['batch_norm']}" if "batch_norm" in method else "",
        f"selected by {card['selection']}" if "selection" in card else "not selected",
        f"seed {card.get('seed')}",
        ", ".join(f"{name} {version}" for name, version in versions.items()),
    ]
    return "; ".join(part for part in parts if part)


def print_report(results: dict[str, Any], folder: Path, evaluation: Evaluation) -> None:
    """Prints the results of a stage as one table, and after a fit the command for the test."""
    stage, card = results["stage"], results["protocol"]
    title = f"{card['method']['name']} on {card.get('data', {}).get('data', 'its data')}: {stage}"
    table = Table(title=title, show_header=False, min_width=60)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    rows = list(evaluation.rows(results))
    for name, number in results["metrics"].items():
        note = f"  (selected on these {evaluation.unit})" if stage == "fit" and name == results["selected"] else ""
        rows.append((name.replace("_", " "), evaluation.told(name, number) + note))
    rows += evaluation.remarks(results)
    for baseline, numbers in results["baselines"].items():
        for name, number in numbers.items():
            number = {**number, "of": results["metrics"].get(name, {}).get("of")}
            rows.append((baseline, f"{evaluation.told(name, number)}  ({name}, same {evaluation.unit})"))
    for row in [*rows, *_run_rows(results)]:
        table.add_row(*row)
    show(table)
    config = folder / "config.yaml"
    if stage == "fit" and results["checkpoint"] and config.exists():
        command = ["lightning", "test", "--config", short_path(config), "--ckpt_path", results["checkpoint"]]
        show(shlex.join(command))


def _run_rows(results: dict[str, Any]) -> list[tuple[str, str]]:
    """The rows for protocol, checkpoint, results file and time."""
    rows = [("protocol", _protocol_line(results.get("trained_under", results["protocol"])))]
    skipped = {name: count for name, count in results.get("skipped", {}).items() if count}
    if skipped:
        counts = ", ".join(f"{count}" if name == "all" else f"{count} {name}" for name, count in skipped.items())
        rows.append(("left out", f"{counts} samples, which could not be read (on_bad_sample=skip)"))
    if "fallback" in results:
        rows.append(("fallback", results["fallback"]))
    rows.append(("checkpoint", results["checkpoint"] or "none (weights in memory)"))
    if "trained_under" in results:
        changed = "; ".join(results["protocol_differences"])
        rows.append(("trained under", f"a different protocol: {changed}" if changed else "the same protocol"))
    return [*rows, ("results", results["file"]), ("time", f"{results['seconds']:.0f} s")]
