"""Shows how each layer of a network changed between the start and the end of a run.

The start is rebuilt from the run's configuration and seed. For each layer, the command compares the features (CKA,
SVCCA) and the weights, and reports the accuracy of a simple classifier of the features, the probe, at both ends.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import LightningDataModule
from matplotlib.figure import Figure
from rich.table import Table

from metatransfer.callbacks.run.display import show
from metatransfer.callbacks.run.report import number
from metatransfer.checks import check_choice, check_count, check_writable
from metatransfer.cli.folders import named_checkpoint
from metatransfer.cli.run_start import rebuilt
from metatransfer.errors import UserError
from metatransfer.experiments.layer_changes import CarriedOver, LayerChange, carried_over
from metatransfer.methods import load
from metatransfer.methods.checkpoints import read_checkpoint
from metatransfer.storage import atomic_file, csv_text, short_path, write_atomically

NESTED = ("data",)


def arguments(parser: ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument(
        "--ckpt_path", type=str, required=True, help="checkpoint of the end of the run, or last or best"
    )
    parser.add_argument("--config", type=str | None, help="configuration of the run (default: its config.yaml)")
    parser.add_argument("--data", type=dict, default={}, help="options of the data that replace those of the run")
    parser.add_argument("--split", type=str, default="val", help="samples to look at: val or test")
    parser.add_argument("--samples", type=int, default=2000, help="maximum number of samples")
    parser.add_argument("--output", type=str | None, help="folder for the results (default: that of the run)")


def run(settings: Namespace) -> None:
    """Prints how the layers changed, and writes ``explanation.json``, ``explanation.csv`` and a figure."""
    check_choice("split", settings.split, ("val", "test"))
    check_count(samples=settings.samples)
    checkpoint = named_checkpoint(settings.ckpt_path)
    folder = _folder(settings.output, checkpoint)
    content = read_checkpoint(checkpoint)
    options = [
        f"--data.{name.replace('/', '.')}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in settings.data.items()
    ]
    start = rebuilt(checkpoint, content, settings.config, options)
    _restore(start.data, content)
    module = load(checkpoint)
    found = carried_over(start.module, module, start.data, split=settings.split, samples=settings.samples)
    beginning = f"the initial weights of seed {start.seed}, built again with the same bits"
    _show(found, f"{type(module).__name__}: from {beginning}, to {short_path(checkpoint)}")
    _write(
        folder, found, {"checkpoint": short_path(checkpoint), "start": beginning}, int(content.get("global_step", 0))
    )


def _folder(output: str | None, checkpoint: Path) -> Path:
    """Where the results are written, checked before anything is computed."""
    place = checkpoint.resolve().parent
    if not output and place.name != "checkpoints":
        raise UserError(
            f"'{short_path(checkpoint)}' is not in the folder checkpoints of a run: give a folder for the results as "
            "--output."
        )
    return check_writable(output or place.parent, "the folder of output" if output else "the folder of the run")


def _restore(data: LightningDataModule, content: Mapping[str, Any]) -> None:
    """Gives the data the vocabulary of the checkpoint."""
    state = content.get(type(data).__qualname__)
    if state:
        data.load_state_dict(state)


def _show(found: CarriedOver, title: str) -> None:
    """A table with one row for each layer, and the conclusion."""
    adapts = any(one.moved_in_tasks is not None for one in found.layers)
    columns = ["layer", "CKA", "SVCCA (by chance)", "weights moved"]
    columns += ["probe at start", "at end", "gain"] if found.probe else []
    columns += ["in a task: CKA", "weights moved"] + ["probe adapted"] * bool(found.probe) if adapts else []
    table = Table(title=title, title_justify="left")
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left")
    for one in found.layers:
        row = [
            one.name,
            _number(one.cka),
            f"{_number(one.svcca)} ({_number(one.svcca_by_chance)})",
            _percent(one.moved),
        ]
        gain = "" if one.gain is None else f"{100 * one.gain:+.1f} ± {100 * (one.gain_ci95 or 0):.1f}"
        row += [_percent(one.probe_start), _percent(one.probe_end), gain] if found.probe else []
        row += [_number(one.cka_in_tasks), _percent(one.moved_in_tasks)] if adapts else []
        row += [_percent(one.probe_adapted)] if adapts and found.probe else []
        table.add_row(*row)
    probe = f"; probe: {found.probe}, gains with 95 % intervals" if found.probe else ""
    show(table, f"Seen on {found.samples}{probe}.", found.conclusion)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}".replace("%", " %")


def _write(folder: Path, found: CarriedOver, card: Mapping[str, Any], step: int) -> None:
    """Writes the JSON file, the CSV file and the figure, which is added to TensorBoard, too."""
    from PIL import Image
    from torch.utils.tensorboard import SummaryWriter

    from metatransfer.drawing.episodes import to_pixels
    from metatransfer.drawing.layers import layers_figure

    layers = [{key: number(value) if isinstance(value, float) else value for key, value in one._asdict().items()}
              for one in found.layers]  # fmt: skip
    content = {**card, "samples": found.samples, "probe": found.probe, "conclusion": found.conclusion, "layers": layers}
    write_atomically(folder / "explanation.json", json.dumps(content, indent=2, allow_nan=False) + "\n")
    rows = [LayerChange._fields, *([("" if value is None else value) for value in one] for one in found.layers)]
    write_atomically(folder / "explanation.csv", csv_text(rows))
    pixels = to_pixels(_figure(found, layers_figure))
    path = folder / "figures" / "explanation.png"
    with atomic_file(path) as draft:
        Image.fromarray(pixels).save(draft, format="png", optimize=True)
    with SummaryWriter(str(folder)) as writer:
        writer.add_image("explanation", pixels, step, dataformats="HWC")
    show(f"{short_path(folder / 'explanation.json')}, explanation.csv and figures/explanation.png, also in TensorBoard")


def _figure(found: CarriedOver, draw: Callable[..., Figure]) -> Figure:
    def series(**named: str) -> dict[str, list[float | None]]:
        values = {label.replace("_", " "): [getattr(one, key) for one in found.layers] for label, key in named.items()}
        return {label: column for label, column in values.items() if any(value is not None for value in column)}

    return draw(
        [one.name for one in found.layers],
        series(CKA="cka", SVCCA="svcca", SVCCA_by_chance="svcca_by_chance", CKA_in_a_task="cka_in_tasks"),
        series(from_start_to_end="moved", in_a_task="moved_in_tasks"),
        series(start="probe_start", end="probe_end", end_adapted="probe_adapted"),
        found.conclusion,
    )
