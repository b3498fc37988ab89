"""Finds folders of pretrained models by path, by package name or in the local cache, without the network."""

import importlib.metadata
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

from metatransfer.checks import did_you_mean
from metatransfer.errors import UserError

_PACKAGE = "package:"
_WEIGHTS = (".safetensors", ".pth", ".pt", ".ckpt")
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def find_model_folder(reference: str, files: Sequence[str], what: str) -> Path:
    """The folder of a model by its path, ``package:NAME`` or Hugging Face name."""
    path = Path(reference).expanduser()
    if reference.startswith(_PACKAGE):
        return _in_package(reference, files, what)
    if path.is_dir():
        missing = [name for name in files if not (path / name).is_file()]
        if missing:
            names = " and no ".join(missing)
            raise UserError(f"{what}: folder '{reference}' has no {names}: download it into the folder.")
        return path
    if path.exists():
        raise UserError(f"{what} '{reference}' is a file: give the folder that contains {' and '.join(files)}.")
    cache, cached = _cached(reference, files)
    if cached is not None:
        return cached
    siblings = [entry.name for entry in path.parent.iterdir() if entry.is_dir()] if path.parent.is_dir() else []
    near = did_you_mean(path.name, siblings)
    raise UserError(
        f"{what} '{reference}' is neither a folder nor a model in the local cache {cache}, and nothing is "
        f"downloaded: put its {' and '.join(files)} into a folder and give the path, or name an installed package "
        f"that contains them, package:NAME{near}"
    )


def find_weights_file(reference: str, what: str) -> Path | None:
    """The only file of weights in an installed package, for ``package:NAME``; ``None`` for any other reference."""
    if not reference.startswith(_PACKAGE):
        return None
    roots = _package_folders(reference.removeprefix(_PACKAGE).strip(), f"{what} '{reference}'")
    found = [file for root in roots for file in sorted(root.rglob("*")) if file.suffix in _WEIGHTS]
    if len(found) != 1:
        listed = ", ".join(str(file) for file in found[:3]) or "none"
        raise UserError(
            f"{what} '{reference}': the package must hold one file of weights ({', '.join(_WEIGHTS)}), but holds "
            f"{len(found)} ({listed}): give the path of the file."
        )
    return found[0]


def _cached(reference: str, files: Sequence[str]) -> tuple[str, Path | None]:
    """The cache of Hugging Face, and the folder in it that has all files of the model's main branch."""
    try:
        from huggingface_hub import constants, try_to_load_from_cache
    except ImportError:
        return "of huggingface_hub, which is not installed", None
    cache = constants.HF_HUB_CACHE
    if not _HUB_NAME.fullmatch(reference):
        return f"'{cache}'", None
    found = [try_to_load_from_cache(reference, name, cache_dir=cache) for name in files]
    whole = [Path(file) for file in found if isinstance(file, str)]
    return f"'{cache}'", whole[0].parent if len(whole) == len(files) else None


def _in_package(reference: str, files: Sequence[str], what: str) -> Path:
    # the only folder of a package that contains the files
    name, _, below = reference.removeprefix(_PACKAGE).strip().partition("/")
    remedy = f", or give the folder that contains {' and '.join(files)}"
    roots = _package_folders(name, f"{what} '{reference}'", remedy)
    found = sorted({hit.parent for root in roots for hit in (root / below).rglob(files[0])})
    found = [folder for folder in found if all((folder / file).is_file() for file in files)]
    # the folder of a model may contain those of its parts
    outer = [folder for folder in found if not any(other in folder.parents for other in found)]
    if len(outer) == 1:
        return outer[0]
    if outer:
        pairs = [(one, root) for root in roots for one in outer if one.is_relative_to(root)]
        inner = sorted({one.relative_to(root).as_posix() for one, root in pairs})
        raise UserError(
            f"{what} '{reference}': package '{name}' has several folders with {' and '.join(files)} "
            f"({', '.join(inner[:3])}{', ...' * (len(inner) > 3)}): specify one, {_PACKAGE}{name}/{inner[0]}."
        )
    raise UserError(
        f"{what} '{reference}': package '{name}' is installed, but contains no folder with {' and '.join(files)}: name "
        "another package, or give a folder."
    )


def _package_folders(name: str, reference: str, remedy: str = "") -> list[Path]:
    """The folders of a package by its import or distribution name; nothing is imported."""
    names = [name, re.sub(r"[-.]+", "_", name)] if re.fullmatch(r"[\w.-]+", name) else []
    try:
        for file in importlib.metadata.files(name) or () if names else ():
            if len(file.parts) > 1 and file.parts[0].isidentifier():
                names.append(file.parts[0])
    except importlib.metadata.PackageNotFoundError:
        pass
    for one in dict.fromkeys(names):
        try:
            spec = importlib.util.find_spec(one) if one.isidentifier() else None
        except ValueError:  # a module without a spec
            spec = None
        if spec is not None and spec.submodule_search_locations:
            return [Path(folder) for folder in spec.submodule_search_locations]
    raise UserError(f"{reference}: no package '{name}' is installed in this Python: install it{remedy}.")
