"""Predictors as files: safetensors for the tensors, and plain JSON values for the rest.

The file is that of a checkpoint without its training, the support set and the learned state. Reading it runs no code:
classes are checked as those of a checkpoint are, see :mod:`metatransfer.trust`.
"""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from metatransfer.arguments import class_path
from metatransfer.checks import check_file
from metatransfer.errors import UserError
from metatransfer.methods.episodic import EpisodicModule
from metatransfer.methods.given import classes_of, floating_dtype
from metatransfer.methods.predictor import LearnedTask, Predictor
from metatransfer.storage import write_atomically
from metatransfer.trust import named_class

FORMAT = 1
_KEY = "metatransfer"
_RETURNS: dict[str, type] = {"Tensor": Tensor, "ndarray": np.ndarray, "list": list}


def save_predictor(predictor: Predictor[Any], path: str | Path, returns: type) -> Path:
    """Writes a predictor to a file, see :meth:`Predictor.save`."""
    module, task, tensors = predictor.module, predictor.task, dict[str, Tensor]()
    labels = task.labels
    content = {
        "module": _checkpoint(module),
        "frozen": [name for name, value in module.named_parameters() if not value.requires_grad],
        "dtype": str(floating_dtype(module)).removeprefix("torch."),
        "support_x": task.support_x,
        "labels": labels if isinstance(labels, Tensor) else list(labels),
        "array": labels.dtype.str if isinstance(labels, np.ndarray) else None,
        "state": task.state,
        "returns": next((name for name, kind in _RETURNS.items() if issubclass(returns, kind)), "list"),
    }
    try:
        text = json.dumps(_described(content, "", tensors))
    except _NotPlainError as error:
        raise UserError(
            f"the predictor cannot be saved, because {error}: labels must be strings or numbers, and the state must "
            "consist of tensors, strings and numbers, in tuples, lists or dicts."
        ) from error
    head = {"format": str(FORMAT), "content": text, "checksum": _checksum(text, tensors)}
    write_atomically(path, safetensors.torch.save(tensors, {_KEY: json.dumps(head)}))
    return Path(path)


def load_predictor(path: str | Path, *, trusted: Sequence[str] = ()) -> Predictor[Any]:
    """Reads a predictor that :meth:`Predictor.save` wrote, on the CPU.

    Its answers have the same bits as before on the same machine and number of threads. Neither the data nor the weight
    files of the training are needed, and the task is not learned again.

    Args:
        path: the file.
        trusted: packages that it may import classes from, besides the known ones and those already imported.

    Returns:
        The predictor; :meth:`Predictor.add` works as before.

    Raises:
        UserError: the file does not exist, is damaged or of another kind or version, or names a class that is not
            allowed.

    Example:
        >>> module.adapt(images, labels).save("cats.safetensors")  # doctest: +SKIP
        >>> metatransfer.load_predictor("cats.safetensors").predict(new)  # doctest: +SKIP
    """
    text, tensors = _read(check_file(str(path), "predictor"))
    try:
        content = _rebuilt(json.loads(text), tensors, trusted)
        module = _module(content, trusted)
        labels = content["labels"]
        if content["array"] is not None:
            labels = np.asarray(labels, dtype=np.dtype(content["array"]))
        task = LearnedTask(content["support_x"], labels, content["state"], classes_of(labels))
        return Predictor.of_task(module, task, _RETURNS[content["returns"]])
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(
            f"'{path}' cannot be rebuilt ({type(error).__name__}: {error}): save the predictor again with this version."
        ) from error


# ---- the module


def _checkpoint(module: EpisodicModule[Any]) -> dict[str, Any]:
    """What ``load_from_checkpoint`` needs, without anything of a training."""
    content: dict[str, Any] = {
        "state_dict": module.state_dict(),
        "hyper_parameters": dict(module.hparams),
        "pytorch-lightning_version": lightning.__version__,
    }
    module.on_save_checkpoint(content)
    content.pop("rng_state", None)
    return content


def _module(content: dict[str, Any], trusted: Sequence[str]) -> EpisodicModule[Any]:
    file, weights = io.BytesIO(), content["module"]["state_dict"]
    torch.save(content["module"], file)  # to be read, and its classes checked, as any checkpoint
    file.seek(0)
    module: EpisodicModule[Any] = EpisodicModule.load_from_checkpoint(file, "cpu", trusted=trusted)
    dtype = getattr(torch, content["dtype"])
    if floating_dtype(module) != dtype:
        module.to(dtype).load_state_dict(weights)
    for name in content["frozen"]:
        module.get_parameter(name).requires_grad_(False)
    return module.eval()


# ---- plain values


class _NotPlainError(TypeError):
    """A value that is neither a tensor nor plain."""


def _described(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:  # noqa: ANN401
    """Plain values for JSON; tensors are put aside under their names, the keys above them joined by ``/``."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return _described(value.item(), name, tensors)
    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {"dict": {key: _described(item, f"{name}/{_escaped(key)}", tensors) for key, item in value.items()}}
    if not isinstance(value, list | tuple):
        raise _NotPlainError(f"'{name.strip('/')}' is of the type {type(value).__name__}")
    items = [_described(item, f"{name}/{place}", tensors) for place, item in enumerate(value)]
    if hasattr(value, "_fields"):
        return {"class_path": class_path(type(value)), "items": items}
    return {"tuple" if isinstance(value, tuple) else "list": items}


def _escaped(key: str) -> str:
    """A key without ``/``, as in JSON pointers (RFC 6901), so that no two tensors get the same name."""
    return key.replace("~", "~0").replace("/", "~1")


def _rebuilt(value: Any, tensors: Mapping[str, Tensor], trusted: Sequence[str]) -> Any:  # noqa: ANN401
    """The inverse of :func:`_described`."""
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "dict" in value:
        return {key: _rebuilt(item, tensors, trusted) for key, item in value["dict"].items()}
    listed = next(value[kind] for kind in ("items", "tuple", "list") if kind in value)
    items = [_rebuilt(item, tensors, trusted) for item in listed]
    if "class_path" in value:
        return named_class(value["class_path"], tuple, trusted)(*items)
    return tuple(items) if "tuple" in value else items


# ---- the file


def _read(file: Path) -> tuple[str, dict[str, Tensor]]:
    try:
        with safe_open(file, "pt") as opened:
            head = json.loads((opened.metadata() or {}).get(_KEY, "null"))
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it is no dict
    except Exception as error:  # safetensors has its own errors, and more for what is inside
        raise UserError(f"'{file}' cannot be read: give a file that Predictor.save wrote, or copy it again.") from error
    if not isinstance(head, dict) or "format" not in head:
        raise UserError(f"'{file}' is not a predictor: give a file that Predictor.save wrote.")
    if head["format"] != str(FORMAT):
        raise UserError(
            f"'{file}' has the format {head['format']}, but this version reads {FORMAT}: install the version of "
            "metatransfer that wrote it, or save the predictor again."
        )
    text = str(head.get("content"))
    if head.get("checksum") != _checksum(text, tensors):
        raise UserError(
            f"'{file}' is damaged (its checksum does not match): copy it again, or save the predictor again."
        )
    return text, tensors


def _checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
