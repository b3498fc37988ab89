"""Hashes of modules and their code, by which caches and protocol cards tell one from another."""

import hashlib
import marshal
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from metatransfer.arguments import class_path, plain_arguments
from metatransfer.trust import KNOWN_PACKAGES

_UNSEEN = {*vars(nn.Module()), "weights_report", "_init_arguments"}  # what changes no output, or is hashed by itself


def module_key(module: nn.Module) -> str:
    """A hash of all that determines the outputs of a module: code, arguments, attributes, parameters and buffers.

    The code is that of classes outside of the known packages, with the functions of the same file that they call.
    """
    texts: list[str] = []
    for name, part in module.named_modules():
        arguments = plain_arguments(part.__dict__.get("_init_arguments", {}))
        arguments.pop("weights", None)  # a path; the weights themselves follow
        own = is_own(type(part))
        plain = {key: value for key, value in vars(part).items() if key not in _UNSEEN and (own or key[0] != "_")}
        texts += [name, class_path(type(part)), str(arguments), code_key(type(part)), *_texts(plain)]
    # buffers that are kept in no checkpoint shape the outputs, too
    texts += _texts(dict(sorted((dict(module.named_buffers()) | module.state_dict()).items())))
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def weights_key(module: nn.Module) -> str | None:
    """A hash of all bits that a checkpoint keeps of a module, and of their names; ``None`` before there are weights."""
    if any(is_lazy(value) or value.is_meta for value in module.parameters()):
        return None
    named = {name.replace("_orig_mod.", ""): value for name, value in module.state_dict().items()}
    return hashlib.sha256("\n".join(_texts(named)).encode()).hexdigest()


def shown(module: nn.Module) -> str:
    """A module for the protocol card: its ``repr``, and for classes of the user the start of its key."""
    own = any(is_own(type(part)) for part in module.modules())
    return f"{module!r} [{module_key(module)[:8]}]" if own else repr(module)


def code_key(kind: type) -> str:
    """The start of a hash of the user's own code of a class and its bases; empty if there is none."""
    texts = "\n".join(text for base in kind.__mro__ for text in (_texts(base) if is_own(base) else ()))
    return hashlib.sha256(texts.encode()).hexdigest()[:8] if texts else ""


def is_own(kind: type | FunctionType) -> bool:
    """Whether a class or function is the user's own, whose code has no version."""
    return str(kind.__module__).partition(".")[0] not in {*KNOWN_PACKAGES, "builtins", "abc", "typing"}


def _texts(value: Any, seen: frozenset[int] = frozenset()) -> Iterator[str]:  # noqa: ANN401
    """What distinguishes a value from others, in any process."""
    if id(value) in seen or isinstance(value, nn.Module):
        return
    inner: Any = ()
    if isinstance(value, Tensor):
        plain = value.detach().cpu().contiguous()
        yield f"{plain.dtype} {tuple(plain.shape)}"
        yield hashlib.sha256(plain.flatten().view(torch.uint8).numpy().tobytes()).hexdigest()
    elif isinstance(value, np.ndarray):
        yield f"{value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"
    elif isinstance(value, FunctionType) and is_own(value):
        code = value.__code__.replace(co_filename="", co_firstlineno=1)
        yield marshal.dumps(code, 2).hex()
        used = [value.__globals__.get(name) for name in code.co_names]  # functions and constants of its file
        inner = [value.__defaults__, value.__kwdefaults__, *(one for one in used if _belongs(one, value.__module__))]
    elif isinstance(value, type) and is_own(value):
        members = {name: getattr(item, "__func__", getattr(item, "fget", item)) for name, item in vars(value).items()}
        inner = {name: item for name, item in members.items() if isinstance(item, FunctionType) or name[0] != "_"}
    elif isinstance(value, Mapping):
        inner = value
    elif isinstance(value, Sequence | Set) and not isinstance(value, str | bytes):
        yield str(len(value))
        inner = sorted(value, key=repr) if isinstance(value, Set) else value  # the order of a set is random
    else:
        yield re.sub(r" at 0x\w+", "", repr(value))
    for key, item in inner.items() if isinstance(inner, Mapping) else enumerate(inner):
        yield str(key)
        yield from _texts(item, seen | {id(value)})


def _belongs(value: object, module: str) -> bool:
    return isinstance(value, bool | int | float | str | tuple) or getattr(value, "__module__", None) == module
