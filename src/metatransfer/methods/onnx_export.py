"""ONNX files: written by torch and onnxscript, described by onnx, and run by onnxruntime (extra ``export``)."""

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metatransfer.errors import UserError


def check_installed() -> None:
    """Raises an error unless the packages of the extra ``export`` are installed."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(
                f"ONNX files need the package {name}: install the extra, pip install 'metatransfer[export]', or export "
                "to .pt2."
            ) from error


def write_onnx(
    program: torch.export.ExportedProgram, path: Path, inputs: Sequence[str], output: str, notes: Mapping[str, str]
) -> None:
    """Writes a program as one ONNX file.

    Args:
        program: the traced program.
        path: the file.
        inputs: names of the inputs.
        output: name of the output.
        notes: the metadata of the model.
    """
    import onnx

    with _quiet():
        made: Any = torch.onnx.export(
            program, (), dynamo=True, input_names=list(inputs), output_names=[output], verbose=False
        )
        model = made.model_proto
    for key, value in notes.items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, path)


def run_onnx(path: Path) -> Callable[..., Tensor]:
    """A function that computes an ONNX file in onnxruntime, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]

    def run(*inputs: Tensor) -> Tensor:
        given = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        return torch.from_numpy(session.run(None, given)[0])

    return run


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's progress and its warnings about packages."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
