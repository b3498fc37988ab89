"""Writes a traced function as a file, runs the file, and compares its answers with those of the function."""

import contextlib
import io
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from metatransfer.batches import Tokens
from metatransfer.errors import UserError
from metatransfer.methods.base import MethodModule
from metatransfer.methods.onnx_export import check_installed, run_onnx, write_onnx
from metatransfer.methods.outputs import Outputs, point_of
from metatransfer.methods.protocol import protocol_card
from metatransfer.methods.twins import detached
from metatransfer.nn.backbones.image_backbone import ImageBackbone
from metatransfer.nn.blocks import merge_added
from metatransfer.storage import atomic_file

NOTES = "metatransfer.json"
"""The name of the metadata inside a ``.pt2`` file; in an ONNX file they are the metadata of the model."""

# older ones cannot trace a free number of classes, or do not read what they wrote
CAN_EXPORT = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 9)


@dataclass(frozen=True)
class Exported:
    """An exported file and its comparison with the method.

    Attributes:
        path: the file.
        inputs: names of its inputs; all have a free number of samples.
        output: ``"probabilities"`` ``(N, C)`` or, for a regression, ``"values"`` ``(N, D)``.
        classes: names of the columns; empty for a regression or if the classes follow from the support set.
        difference: largest absolute difference from the method's answers.
        tolerance: largest difference that was allowed.
        size: bytes of the file.
        milliseconds: time of one sample from the file, median.
        own_milliseconds: time of one sample from the method, median.
    """

    path: Path
    inputs: tuple[str, ...]
    output: str
    classes: tuple[str, ...]
    difference: float
    tolerance: float
    size: int
    milliseconds: float
    own_milliseconds: float

    def __str__(self) -> str:
        """A sentence for people."""
        return (
            f"{self.path}: {', '.join(self.inputs)} -> {self.output}; differs from the method by {self.difference:.1e} "
            f"at most (tolerance {self.tolerance:.0e}); {self.size / 2**20:.2f} MB; {self.milliseconds:.2f} ms for one "
            f"sample ({self.own_milliseconds:.2f} ms in the method)"
        )


class Answers(nn.Module):
    """What is traced: a copy of a method on the CPU in evaluation mode."""

    def __init__(self, module: MethodModule) -> None:
        super().__init__()
        self.module: Any = detached(module).cpu().eval().requires_grad_(False)
        merge_added(self.module)

    @staticmethod
    def points(outputs: Outputs, classes: int | None = None) -> Tensor:
        """Probabilities of the outputs for one task, or values."""
        points = point_of(outputs).squeeze(0).float()
        return points if classes == 0 else points[:, :classes].softmax(-1)


def exported(
    answers: Answers, inputs: Mapping[str, Any], path: str | Path, tolerance: float, classes: Sequence[str],
    regression: bool = False,
) -> Exported:  # fmt: skip
    """Traces, writes, runs and compares."""
    if not CAN_EXPORT:
        raise UserError(f"exporting needs torch 2.9 or newer, but {torch.__version__} is installed: update torch.")
    path = Path(path).expanduser()
    if path.suffix not in (".onnx", ".pt2"):
        raise UserError(f"the exported file must end in .onnx or .pt2, but its path is '{path}'.")
    if path.suffix == ".onnx":
        check_installed()
    flat = _named(inputs)
    example = [_at_least_two(value) for value in inputs.values()]
    output = "values" if regression else "probabilities"
    with torch.no_grad(), atomic_file(path) as draft:
        # also, checks that read values of the first batch are passed before tracing
        if not torch.isfinite(answers(*example)).all():
            raise UserError(f"the answers of {_name(answers)} are NaN or infinite: check its weights and the samples.")
        program = _traced(answers, example)
        notes = _notes(answers, flat, output, classes)
        if path.suffix == ".onnx":
            run = _attempt(answers, lambda: _as_onnx(program, draft, list(flat), output, notes))
        else:
            run = _attempt(answers, lambda: _as_pt2(program, draft, notes))
        difference = _attempt(answers, lambda: _difference(answers, run, example, regression))
        if not difference <= tolerance:
            raise UserError(
                f"the answers of the exported {_name(answers)} differ by up to {difference:.1e} from its own, but "
                f"tolerance is {tolerance:.0e}: raise tolerance, or export to the other format, .onnx or .pt2."
            )
        single = [_rows(value, 1) if place == len(example) - 1 else value for place, value in enumerate(example)]
        times = [math.nan, math.nan]
        with contextlib.suppress(UserError):  # statistics of one sample
            times = [_milliseconds(call, single) for call in (answers, run)]
    return Exported(
        path, tuple(flat), output, tuple(classes), difference, tolerance, path.stat().st_size, *reversed(times)
    )


def _named(inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Inputs by name; texts have two."""
    found: dict[str, Tensor] = {}
    for name, value in inputs.items():
        parts = {f"{name}_ids": value.ids, f"{name}_mask": value.mask} if isinstance(value, Tokens) else {name: value}
        found |= parts
    return found


def _traced(answers: Answers, example: list[Any]) -> torch.export.ExportedProgram:
    free: Any = torch.export.Dim.DYNAMIC
    shapes = [
        Tokens({0: free, 1: free}, {0: free, 1: free}) if isinstance(value, Tokens) else {0: free}  # type: ignore[arg-type]
        for value in example
    ]
    traced: torch.export.ExportedProgram = _attempt(
        answers, lambda: torch.export.export(answers, tuple(example), dynamic_shapes=tuple(shapes), strict=False)
    )
    return traced


def _attempt(answers: Answers, function: Callable[[], Any]) -> Any:  # noqa: ANN401
    try:
        return function()
    except UserError:
        raise
    except Exception as error:  # the exporters of torch raise many types of errors
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise UserError(
            f"{_name(answers)} cannot be exported with torch {torch.__version__} ({type(error).__name__}: {reason}): "
            "use the other format, .onnx or .pt2, another version of torch, or predictor.save."
        ) from error


def _name(answers: Answers) -> str:
    return type(answers.module).__name__


def _notes(answers: Answers, inputs: Mapping[str, Tensor], output: str, classes: Sequence[str]) -> dict[str, str]:
    """The metadata, texts by name; all but the name of the method and the version are JSON."""
    backbone = getattr(answers.module, "backbone", None)
    inside: dict[str, Any] = {}
    if isinstance(backbone, ImageBackbone):
        inside = {name: getattr(backbone, name).flatten().tolist() for name in ("mean", "std")}
        inside = {"resize": backbone.resize, **inside}
    shapes = {
        name: {"type": str(value.dtype).removeprefix("torch."), "shape": ["N", *value.shape[1:]]}
        for name, value in inputs.items()
    }
    return {
        "metatransfer": protocol_card(answers.module)["versions"]["metatransfer"],
        "method": _name(answers),
        "classes": json.dumps(list(classes)),
        "inputs": json.dumps(shapes),
        "output": json.dumps(output),
        "preprocessing_inside": json.dumps(inside),
    }


def _as_onnx(
    program: torch.export.ExportedProgram, path: Path, inputs: list[str], output: str, notes: dict[str, str]
) -> Callable[..., Tensor]:
    write_onnx(program, path, inputs, output, notes)
    run = run_onnx(path)
    return lambda *given: run(*pytree.tree_leaves(given))


def _as_pt2(program: torch.export.ExportedProgram, path: Path, notes: dict[str, str]) -> Callable[..., Tensor]:
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={NOTES: json.dumps(notes)})
    path.write_bytes(content.getbuffer())
    content.seek(0)
    return torch.export.load(content).module()


# ---- the comparison


def _at_least_two(x: Any) -> Any:  # noqa: ANN401
    """Samples, of which there are two or more: torch takes a size of 1 for a constant."""
    return _rows(x, max(2, len(pytree.tree_leaves(x)[0])))


def _rows(x: Any, count: int) -> Any:  # noqa: ANN401
    """The first samples, from the start again if there are fewer."""
    return pytree.tree_map(lambda part: part[torch.arange(count) % len(part)], x)


def _difference(answers: Answers, run: Callable[..., Tensor], example: list[Any], regression: bool) -> float:
    """The largest difference, for several numbers of queries; of a regression in units of the largest value."""
    found: list[Tensor] = []
    for count in (1, 2, 2 * len(pytree.tree_leaves(example[-1])[0]) + 1):
        try:
            given = [*example[:-1], _rows(example[-1], count)]
            own = answers(*given)
        except UserError:  # statistics of one sample
            continue
        scale = own.abs().max().clamp(min=1.0) if regression else 1.0
        found.append((run(*given) - own).abs().max() / scale)
    return float(torch.stack(found).max()) if found else math.nan  # Python's max would pass over NaN


def _milliseconds(call: Callable[..., Tensor], given: list[Any], seconds: float = 0.3) -> float:
    """Median time of a call, of up to 50 calls."""
    call(*given)
    times: list[float] = []
    while len(times) < 3 or (len(times) < 50 and sum(times) < seconds):
        start = time.perf_counter()
        call(*given)
        times.append(time.perf_counter() - start)
    return 1e3 * median(times)
