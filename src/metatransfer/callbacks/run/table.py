"""Results as one table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from metatransfer.storage import short_path


def with_interval(name: str, number: dict[str, float | None]) -> str:
    """A number as it is read: accuracies in percent, with the half-width of the interval.

    Args:
        name: of the metric; behind a source's name where there are several.
        number: ``value``, and ``ci95`` where it has one.

    Returns:
        For example ``"98.22 ± 0.20 %"``.
    """
    value, half_width = number["value"], number.get("ci95")
    if value is None:
        return "not a number"
    percent = name.rpartition("/")[2] in ("accuracy", "source_accuracy", "calibration_error", "macro_f1")
    scale, unit, digits = (100.0, " %", 2) if percent else (1.0, "", 4)
    interval = f" ± {scale * half_width:.{digits}f}" if half_width is not None else ""
    return f"{scale * value:.{digits}f}{interval}{unit}"


def _episode_line(shape: dict[str, Any]) -> str:
    if "shape" in shape:
        limits = ", ".join(f"{name}={value}" for name, value in shape.items() if name != "shape")
        return f"{shape['shape']} with {limits}"
    if "num_ways" not in shape:
        return f"{shape['num_shots']} shots, {shape['num_queries']} queries"
    return f"{shape['num_ways']}-way {shape['num_shots']}-shot, {shape['num_queries']} queries per class"


def _domains_line(results: dict[str, Any], split: str, data: dict[str, Any]) -> str:
    seen = data["train_batches"]
    trained = {
        side: " and ".join(f"{name} ({one['samples']})" for name, one in seen[side].items())
        for side in ("sources", "targets")
    }
    source = f", {results['source_samples']} of the source" if "source_samples" in results else ""
    return (
        f"{results['samples']} {split} of the target{source}, {data.get('classes', 'its')} classes, trained on "
        f"{trained['sources']} with labels and {trained['targets']} without"
    )


def _oracle_rows(oracle: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What labels of the target tell.

    Yields:
        Name and content of a row.
    """
    if oracle.get("accuracy") is not None:
        told = with_interval("accuracy", oracle["accuracy"])
        chosen = f", the state selected by {oracle['selected_by']}" if oracle.get("selected_by") else ""
        yield "oracle accuracy", f"{told}  (labels of the target, for the report only{chosen})"
    if oracle.get("gap") is not None:
        best = f"best of {oracle['validations']} validations {100 * oracle['best_accuracy']:.2f} %"
        yield "selection gap", f"{oracle['gap']:.2f} points  ({best}; labels of the target, for the report only)"


def _samples_line(results: dict[str, Any], split: str, data: dict[str, Any]) -> str:
    seen, samples = data.get("train_batches", {}), results["samples"]
    if "targets" in seen:
        return _domains_line(results, split, data)
    labels = seen.get("labels_per_class")
    learned = f"{labels} labels per class" if labels else f"{seen.get('samples', 'its')} samples"
    return f"{samples} {split}, {data.get('classes', 'its')} classes, trained on {learned}"


def _protocol_line(card: dict[str, Any]) -> str:
    """What of a protocol card the table has no other row for."""
    method, data, versions = card["method"], card.get("data", {}), card["versions"]
    parts = [
        f"split {data['split']}" if "split" in data else "",
        f"BatchNorm statistics: {method['batch_norm']}" if "batch_norm" in method else "",
        f"selected by {card['selection']}" if "selection" in card else "not selected",
        f"seed {card.get('seed')}",
        ", ".join(f"{name} {version}" for name, version in versions.items()),
    ]
    return "; ".join(part for part in parts if part)


def print_report(results: dict[str, Any], folder: Path) -> None:
    """Prints results as one table.

    Args:
        results: the content of ``results.json``.
        folder: where that file lies.
    """
    stage, card = results["stage"], results["protocol"]
    split = "test" if stage == "test" else "val"
    data, method = card.get("data", {}), card["method"]
    table = Table(title=f"{method['name']} on {data.get('data', 'its data')}: {stage}", show_header=False, min_width=60)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    unit = "samples" if results.get("samples") is not None else "episodes"
    if results.get("samples") is not None:
        table.add_row("samples", _samples_line(results, split, data))
    if "eval_episode" in data:
        table.add_row("episodes", f"{results['episodes'] or 'no'} {split}, {_episode_line(data['eval_episode'])}")
    for name, source in data.get("test", {}).items() if stage == "test" else ():
        table.add_row(f"test on {name}", f"{source['data']}, {_episode_line(source['eval_episode'])}")
    for name, number in results["metrics"].items():
        note = f"  (chosen on these {unit})" if stage == "fit" and name == results["selected"] else ""
        table.add_row(name.replace("_", " "), with_interval(name, number) + note)
    for name, told in _oracle_rows(results.get("oracle", {})):
        table.add_row(name, told)
    for baseline, numbers in results["baselines"].items():
        for name, number in numbers.items():
            table.add_row(
                f"{baseline}",
                f"{with_interval(name, number)}  ({name}, same {unit})",
            )
    table.add_row("protocol", _protocol_line(results.get("trained_under", card)))
    skipped = {name: count for name, count in results.get("skipped", {}).items() if count}
    if skipped:
        counts = ", ".join(f"{count} of {name}" for name, count in skipped.items())
        table.add_row("left out", f"{counts}: samples that could not be used (on_bad_sample=skip)")
    if "fallback" in results:
        table.add_row("fallback", results["fallback"])
    table.add_row("checkpoint", results["checkpoint"] or "none: the weights in memory")
    config = folder / "config.yaml"
    if stage == "fit" and results["checkpoint"] and config.exists():
        table.add_row("test it", f"lightning test --config {short_path(config)} --ckpt_path {results['checkpoint']}")
    if "trained_under" in results:
        changed = results["protocol_differences"]
        table.add_row(
            "trained under", "the same protocol" if not changed else "another protocol: " + "; ".join(changed)
        )
    table.add_row("results", results["file"])
    table.add_row("seconds", f"{results['seconds']:.0f}")
    console = Console()
    # a file or a pipe has no width of its own: paths must stay whole for copying
    Console(width=console.width if console.is_terminal else 160).print(table)
