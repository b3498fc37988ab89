"""Who may import whom, read from the imports; the habits that slip; what is shipped."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections import Counter

import pytest

import metatransfer
from conftest import ROOT
from contract import methods
from metatransfer import MethodModule

SOURCE = ROOT / "src" / "metatransfer"
FILES = sorted(SOURCE.rglob("*.py"))
TEXTS = {path: path.read_text() for path in FILES}
TREES = {path: ast.parse(text) for path, text in TEXTS.items()}
GROUND = {"errors", "arguments", "batches", "checks", "data_info", "host_memory", "model_folders", "module_keys"}
GROUND |= {"storage", "trust"}
MAY_IMPORT = {
    **dict.fromkeys(GROUND, GROUND),
    "functional": GROUND,
    "nn": GROUND | {"functional"},
    "metrics": GROUND | {"functional"},
    "adapters": GROUND | {"functional"},
    "drawing": GROUND | {"functional"},
    "data": GROUND | {"functional"},
    "methods": GROUND | {"functional", "nn", "metrics", "adapters", "drawing"},
    "experiments": GROUND | {"functional", "nn", "metrics", "adapters", "methods"},
    "callbacks": GROUND | {"functional", "nn", "metrics", "adapters", "drawing", "methods", "experiments"},
}
IN_DATA = {
    "sources": set(),
    "readers": {"sources"},
    "collections": {"sources", "readers"},
    "sampling": {"sources"},
    "serving": {"sources", "sampling"},
}
FREE = {"cli", "__main__", "__init__"}  # the top
# an optional dependency is imported in one file alone
OPTIONAL = {"h5py", "pyarrow", "learn2learn", "tokenizers", "transformers", "timm", "huggingface_hub"}
OPTIONAL |= {"onnx", "onnxruntime", "onnxscript", "captum", "ray", "submitit", "optuna", "sqlalchemy", "filelock"}
IN_SEVERAL_FILES = {"huggingface_hub": "timm and transformers each look for their weights in its cache"}
# files that may unpickle, each with the reason
UNPICKLES: dict[str, str] = {}
# no more lines than this in src: a limit against growth; lower it when the package has become smaller
MAX_LINES = 41000
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


def imports(path):
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module


def imported_names(path):
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.ImportFrom):
            yield from ((node.module, alias.name) for alias in node.names)


def part(name, place=1):
    """The part of the house that ``metatransfer.x.y`` belongs to."""
    parts = name.split(".")
    return parts[place] if len(parts) > place else "__init__"


def of(path):
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def classes():
    """Every class of the package, as written."""
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                yield path, node


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_follow_the_plan(path):
    here = of(path)
    for name in imports(path):
        top = name.split(".")[0]
        if top != "metatransfer":
            known = top in REQUIRED | OPTIONAL or top in sys.stdlib_module_names
            assert known, f"{path.relative_to(ROOT)} imports {name}"
        elif here not in FREE and part(name) != here and not (name == top and path.name == "protocol.py"):
            # protocol.py reads the version number
            assert part(name) in MAY_IMPORT[here], f"{path.relative_to(ROOT)} imports {name}"


def test_inside_of_data():
    for path in (SOURCE / "data").rglob("*.py"):
        here = path.relative_to(SOURCE / "data").parts[0]
        for name in imports(path) if here in IN_DATA else ():
            if name.startswith("metatransfer.data.") and part(name, 2) != here:
                assert part(name, 2) in IN_DATA[here], f"{path.relative_to(ROOT)} imports {name}"


def test_an_optional_dependency_is_imported_in_one_file():
    users = {
        name: {path.name for path in FILES if name in {one.split(".")[0] for one in imports(path)}} for name in OPTIONAL
    }
    assert {name for name, found in users.items() if len(found) > 1} == set(IN_SEVERAL_FILES)


def test_families_do_not_import_each_other():
    families = {path.parent.name for path in (SOURCE / "methods").glob("*/__init__.py")} - {"evaluation"}
    for path in (SOURCE / "methods").glob("*/*.py"):
        for name in imports(path):
            parts = name.split(".")
            if parts[:2] == ["metatransfer", "methods"] and len(parts) > 2 and parts[2] in families:
                assert parts[2] == path.parent.name, f"{path.name} imports {name}"


def test_pure_rooms_know_no_lightning():
    for here in ("functional", "nn", "batches.py", "checks", "errors.py"):
        place = SOURCE / here
        for path in place.rglob("*.py") if place.is_dir() else [place]:
            assert not any(name.startswith("lightning") for name in imports(path)), path


def test_a_method_is_one_file_and_one_yaml_of_the_same_stem():
    for kind in methods(MethodModule):
        stem = kind.__module__.rpartition(".")[2]
        assert list((ROOT / "configs").rglob(f"{stem}.yaml")), kind.__name__


def test_no_unsafe_loading():
    """PITFALLS 38: nothing here unpickles a stranger's file."""
    for path in FILES:
        text = TEXTS[path]
        assert path.name in UNPICKLES or "pickle" not in [name.split(".")[0] for name in imports(path)], path
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


def test_the_package_is_typed():
    assert (SOURCE / "py.typed").exists()
    assert len(list((SOURCE / "data").rglob("NOTICE-*.md"))) == 2


# ---- exports


def test_a_public_name_means_one_thing():
    """A family exports a class in its ``__init__``; the rooms above repeat it by themselves."""
    assert [name for name, count in Counter(metatransfer.__all__).items() if count > 1] == []
    for path in SOURCE.rglob("__init__.py"):
        module = importlib.import_module(".".join(["metatransfer", *path.relative_to(SOURCE).parts[:-1]]))
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if hasattr(metatransfer, name) and isinstance(value, type):
                assert getattr(metatransfer, name) is value, f"{module.__name__}.{name}"


def test_every_method_is_exported():
    for kind in methods(MethodModule):
        assert getattr(metatransfer, kind.__name__, None) is kind, kind.__name__


# ---- habits that slip

# constructors with **kwargs, with the reason
KEYWORDS = {
    "Collector": "a torchmetrics Metric, see EpisodeMean",
    "ArgumentParser": "a LightningArgumentParser, which Lightning constructs",
    "EpisodeMean": "a torchmetrics Metric, whose base takes options for distributed runs",
}


def test_constructors_have_at_most_ten_named_arguments():
    many, catching = {}, set()
    for _, node in classes():
        for function in node.body:
            if isinstance(function, ast.FunctionDef) and function.name == "__init__":
                names = [one.arg for one in (*function.args.args, *function.args.kwonlyargs)]
                if len(names) > 11:
                    many[node.name] = len(names) - 1
                if function.args.kwarg and node.name not in KEYWORDS:
                    catching.add(node.name)
    assert (many, catching) == ({}, set())


def test_classes_have_at_most_twenty_methods():
    count = lambda node: sum(isinstance(one, ast.FunctionDef) for one in node.body)  # noqa: E731
    assert {node.name: count(node) for _, node in classes() if count(node) > 20} == {}


@pytest.mark.parametrize("room", ["cli", "callbacks"])
def test_no_family_is_named(room):
    families = {path.parent.name for path in (SOURCE / "methods").glob("*/__init__.py")} - {"evaluation"}
    kinds = {kind.__name__ for kind in methods(MethodModule)} | {"DomainAdaptationModule", "InnerLoopModule"}
    for path in (SOURCE / room).rglob("*.py"):
        for module, name in imported_names(path):
            assert name not in kinds, f"{path.relative_to(ROOT)} imports {name}"
            assert not (module.startswith("metatransfer.methods.") and part(module, 2) in families), path


def test_folders_have_at_most_twenty_files():
    for folder in {path.parent for path in FILES}:
        files = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        if len(files) > 20:
            bases = [{base.id for node in ast.walk(TREES[path]) if isinstance(node, ast.ClassDef)
                      for base in node.bases if isinstance(base, ast.Name)} for path in files]  # fmt: skip
            assert set.intersection(*bases), f"{folder.relative_to(ROOT)}: {len(files)} files of different kinds"


# names with an underscore that belong to others, each with the reason
PRIVATE = {
    "_load": "a checkpoint is checked as Lightning reads it",
    "_parse_ckpt_path": "Lightning would let the checkpoint's arguments win; a test in test_cli pins it",
    "_dump_config": "Lightning notes the arguments when it builds the first module",
    "_save_checkpoint": "the protocol card is written with the checkpoint",
    "_remove_checkpoint": "the protocol card is removed with the checkpoint",
    "_save_last_checkpoint": "ModelCheckpoint has no public way to save the last state",
    "_monitor_candidates": "what ModelCheckpoint saves by",
    "_should_skip_saving_checkpoint": "whether ModelCheckpoint saves at all",
    "_should_save_on_exception": "whether ModelCheckpoint saves at all",
    "_data_fetcher": "whether a validation comes next, which Lightning does not expose",
    "_should_check_val_fx": "whether a validation comes next, which Lightning does not expose",
    "_trainer": "LightningModule.trainer raises an error if there is none",
    "_given_hyperparameters": "what LightningCLI passes for the checkpoint",
    "_ddp_kwargs": "DDPStrategy has no public way to change its options",
    "_parameters": "parameters of a module itself by name, without the cost of named_parameters",
    "_buffers": "buffers of a module itself, which only there can be replaced",
    "_version": "a logger has no public way to be given its version after it is made",
    "_pytree": "torch.utils._pytree; the public torch.utils.pytree is newer than the oldest torch",
}


def test_private_names_of_others_have_a_reason():
    """A name with an underscore that nothing in this package defines belongs to another package."""
    own = {name for tree in TREES.values() for node in ast.walk(tree) for name in _defined(node)}
    found = {}
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            names = [node.attr] if isinstance(node, ast.Attribute) else []
            if isinstance(node, ast.ImportFrom) and not node.module.startswith("metatransfer"):
                names += [alias.name for alias in node.names]
            for name in names:
                if re.match(r"_[a-z]", name) and name not in own | set(PRIVATE) and name not in NAMED_TUPLES:
                    found.setdefault(name, path.name)
    assert found == {}


NAMED_TUPLES = {"_replace", "_asdict", "_fields", "_make"}  # public in spite of their names


def _defined(node):
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
        yield node.attr
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value  # set by name
    elif isinstance(node, ast.alias):
        yield node.asname or ""


def test_nothing_is_patched():
    for path in FILES:
        assert "unittest" not in {name.split(".")[0] for name in imports(path)}, path


@pytest.mark.parametrize("words", ["ignore[override]", "As of the base", "unlabeled", "the optimizer", "an optimizer"])
def test_words_that_do_not_appear(words):
    assert [str(path.relative_to(SOURCE)) for path, text in TEXTS.items() if words in text] == []


def test_the_package_is_small():
    assert sum(text.count("\n") for text in TEXTS.values()) <= MAX_LINES


def test_the_command_line_is_small():
    assert TEXTS[SOURCE / "cli" / "messages.py"].count("\n") <= 200
