"""Who may import whom, read from the imports; what a method costs; what is shipped."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

from conftest import ROOT
from contract import methods
from metatransfer import MethodModule

SOURCE = ROOT / "src" / "metatransfer"
FILES = sorted(SOURCE.rglob("*.py"))
GROUND = {"errors", "arguments", "batches", "checks", "data_info", "model_folders", "storage"}
MAY_IMPORT = {
    **dict.fromkeys(GROUND, GROUND),
    "functional": GROUND,
    "nn": GROUND | {"functional"},
    "metrics": GROUND | {"functional"},
    "adapters": GROUND | {"functional"},
    "data": GROUND | {"functional"},
    "methods": GROUND | {"functional", "nn", "metrics", "adapters"},
    "drawing": GROUND | {"functional"},
    "experiments": GROUND | {"functional", "nn", "metrics", "methods", "callbacks"},
    "callbacks": GROUND | {"functional", "nn", "metrics", "methods", "experiments", "drawing"},
}
FREE = {"cli", "__main__", "__init__"}  # the top
# an optional dependency is imported only in the one file that it serves
OPTIONAL = {
    "pyarrow": {"tables.py"},
    "learn2learn": {"learn2learn.py"},
    "tokenizers": {"text_tokenizers.py"},
    "transformers": {"huggingface_encoder.py"},
    "timm": {"timm_backbone.py"},
    "huggingface_hub": {"timm_backbone.py", "model_folders.py"},
}
REQUIRED = {
    "torch",
    "torchvision",
    "lightning",
    "torchmetrics",
    "jsonargparse",
    "rich",
    "matplotlib",
    "numpy",
    "PIL",
    "yaml",
    "safetensors",
    "sklearn",
    "scipy",
}


def imports(path, nested=True):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree) if nested else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module


def room(name):
    """The part of the house that ``metatransfer.x.y`` belongs to."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def of(path):
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_follow_the_plan(path):
    here = of(path)
    for name in imports(path):
        if name.split(".")[0] == "metatransfer":
            if here in FREE or room(name) == here:
                continue
            if name == "metatransfer" and path.name == "protocol.py":
                continue  # the version number, at call time
            assert room(name) in MAY_IMPORT[here], f"{path.relative_to(ROOT)} imports {name}"
        else:
            top = name.split(".")[0]
            known = top in REQUIRED or top in sys.stdlib_module_names or path.name in OPTIONAL.get(top, ())
            assert known, f"{path.relative_to(ROOT)} imports {name}"


def test_families_do_not_import_each_other():
    families = {path.parent.name for path in (SOURCE / "methods").glob("*/__init__.py")}
    for path in (SOURCE / "methods").glob("*/*.py"):
        for name in imports(path):
            parts = name.split(".")
            if parts[:2] == ["metatransfer", "methods"] and len(parts) > 2 and parts[2] in families:
                assert parts[2] == path.parent.name, f"{path.name} imports {name}"


@pytest.mark.parametrize("path", sorted((SOURCE / "data").rglob("*.py")), ids=lambda path: path.name)
def test_layers_of_the_data(path):
    """Sources, readers and collections; sources, sampling and serving; the two lines never meet."""
    below = {
        "sources": {"sources"},
        "readers": {"sources", "readers"},
        "collections": {"sources", "readers", "collections"},
        "sampling": {"sources", "sampling"},
        "serving": {"sources", "readers", "sampling", "serving"},
    }
    here = path.parent.name
    for name in imports(path) if here in below else ():
        parts = name.split(".")
        if parts[:2] == ["metatransfer", "data"] and len(parts) > 2:
            assert parts[2] in below[here], f"{here}/{path.name} imports {name}"


def test_pure_rooms_know_no_lightning():
    for here in ("functional", "nn", "batches.py", "checks.py", "errors.py"):
        place = SOURCE / here
        for path in place.rglob("*.py") if place.is_dir() else [place]:
            assert not any(name.startswith("lightning") for name in imports(path)), path


def test_a_method_is_one_file_and_one_yaml_of_the_same_stem():
    for kind in methods(MethodModule):
        stem = kind.__module__.rpartition(".")[2]
        assert list((ROOT / "configs").rglob(f"{stem}.yaml")), kind.__name__


def test_no_unsafe_loading():
    """PITFALLS 38: nothing here unpickles a stranger's file."""
    plain = SOURCE / "data" / "readers" / "pickles.py"  # knows the names of numeric arrays, and no others
    assert "class _PlainUnpickler(pickle.Unpickler)" in plain.read_text()
    assert "pickle.load" not in plain.read_text()
    for path in FILES:
        text = path.read_text()
        assert path == plain or "pickle" not in [name.split(".")[0] for name in imports(path)], path
        for call in re.findall(r"torch\.load\(([^\n]*)", text):
            assert "weights_only=True" in call, path
        for call in re.findall(r"np\.load\(([^\n]*)", text):
            assert "allow_pickle=False" in call, path


def test_no_machine_or_host_in_what_is_shipped():
    # spelt in pieces, so that this file may be read too
    words = ["/" + "work/", "/" + "root/", "pypi" + ".org", "npm" + "js.org", "deb" + "ian.org/debian"]
    folders = ("src", "configs", "docs", "tests", "tools", "benchmarks", ".ci")
    places = [path for folder in folders for path in (ROOT / folder).rglob("*") if "_build" not in path.parts]
    for path in [*places, *ROOT.glob("*.md"), ROOT / "pyproject.toml"]:
        if path.suffix in {".py", ".md", ".toml", ".yaml", ".txt", ".sh", ""} and path.is_file():
            text = path.read_text(errors="ignore")
            assert not [word for word in words if word in text], path


def test_public_names_are_documented():
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path}: {node.name}"


def test_the_package_is_typed():
    assert (SOURCE / "py.typed").exists()
    assert Path(SOURCE / "data" / "NOTICE-glyphs.md").exists()
