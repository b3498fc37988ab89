"""Shared by all tests: few threads, a clean random state, a small command line, and runs that are made only once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import sys
import warnings
from collections import Counter, defaultdict
from pathlib import Path

# before torch starts its threads; inherited by the processes that tests start
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from filelock import FileLock

import messages
import processes
from contract import content_of, wraps_episodes
from metatransfer.cli import main

# caplog reads the root logger, to which Lightning does not propagate unless it had a handler at import
logging.getLogger("lightning.pytorch").propagate = True

ROOT = Path(__file__).resolve().parents[1]
SHRINK = [
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]
SMALL_DATA = [
    "--data.episodes.train=12",
    "--data.episodes.val=6",
    "--data.episodes.test=6",
    "--data.episodes.per_batch=2",
    "--data.task.num_queries=2",
    "--data.eval_task.num_queries=2",
]
TWO_BATCHES = ["--data.episodes.train=4"]  # in an epoch, with the two tasks of a batch above
ENDLESS = ["--data.episodes.train=100000"]
# six batches of an epoch, as the episodes above make
SMALL_BATCHES = ["--data.batch_size=4", "--trainer.limit_train_batches=6"]
SMALL_RUN = ["--trainer.max_epochs=1", "--trainer.num_sanity_val_steps=0", "--trainer.log_every_n_steps=1"]
KEEP = '--trainer.callbacks=[{"class_path": "contract.KeepAnswers"}]'
FEW_STEPS = {"reptile": ["--model.inner.steps=4", "--model.inner.train_steps=2"]}


# ---- which tests run, and where


def pytest_addoption(parser):
    parser.addoption(
        "--third",
        type=int,
        choices=(0, 1, 2),
        help="run a third of the tests, always the same",
    )
    parser.addoption(
        "--update-messages", action="store_true", help="write tests/golden_messages.txt anew for the files that run"
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """One worker for each core, at most four; none for single files, where their start would take longer."""
    named = [argument.partition("::")[0] for argument in config.args]
    if config.option.update_messages or (named and all(name.endswith(".py") for name in named)):
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 4)


def pytest_configure(config):
    # messages that quote other packages differ between their versions
    messages.compared = config.option.third is None
    messages.updating = config.option.update_messages
    if messages.updating:  # of slow tests too: those of a file are written together
        config.option.markexpr = "not mutants"
    processes.preload()


@pytest.hookimpl(tryfirst=True)  # before -m is asked
def pytest_collection_modifyitems(config, items):
    grids = defaultdict(list)
    for item in items:
        if item.get_closest_marker("grid"):
            grids[item.function].append(item)
    for members in grids.values():
        for item, place in zip(members, _places(members), strict=True):
            if place % item.get_closest_marker("grid").args[0]:
                item.add_marker(pytest.mark.slow)
    third = config.option.third
    if third is None:
        return
    # by file, since its tests share runs
    sizes = Counter(_file(item) for item in items if not item.get_closest_marker("slow"))
    loads, places = [0, 0, 0], {}
    for name, size in sorted(sizes.items(), key=lambda pair: (-pair[1], pair[0])):  # each to the lightest third so far
        places[name] = loads.index(min(loads))
        loads[places[name]] += size
    chosen = [item for item in items if places.get(_file(item)) == third]
    kept = set(chosen)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = chosen


def _file(item):
    return item.nodeid.partition("::")[0]


def _places(items):
    """For each test of a grid, the sum of the places of its values in their lists: one remainder has every value."""
    lists = [mark.args[0] for mark in items[0].iter_markers("parametrize")]
    lists = [names.replace(" ", "").split(",") if isinstance(names, str) else names for names in lists]
    total = [0] * len(items)
    for names in lists:
        # lists keep their objects: equal identities are equal values
        values = [tuple(id(item.callspec.params[name]) for name in names) for item in items]
        place = {value: number for number, value in enumerate(dict.fromkeys(values))}
        total = [sum_ + place[value] for sum_, value in zip(total, values, strict=True)]
    return total


def pytest_sessionfinish():
    messages.write()


# ---- what every test starts from


@pytest.fixture(autouse=True)
def _quiet_and_reproducible():
    # the suite's networks are tiny: more threads only wait for each other
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found = list(sys.path)  # the command adds the folder that it is called in
    with warnings.catch_warnings():
        yield
    sys.path[:] = found


# ---- the command line


@pytest.fixture
def cli(tmp_path, monkeypatch):
    """Runs the real command in an empty folder; returns the run's folder for ``fit``, ``validate`` and ``test``."""
    monkeypatch.chdir(tmp_path)

    def run(command, config, *arguments, small=True):
        main(command_line(command, config, *arguments, small=small))
        return latest_run(tmp_path)

    return run


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Runs that several tests only look at: ``runs("fit", config, ...)`` as with ``cli``, made when first asked for.

    All workers share them. Nobody may write into their folders.
    """
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    root /= "runs"
    root.mkdir(exist_ok=True)

    def run(command, config, *arguments, small=True):
        words = command_line(command, config, *arguments, small=small)
        folder = root / hashlib.sha256(json.dumps(words).encode()).hexdigest()[:16]
        with FileLock(f"{folder}.lock"):
            if not folder.with_suffix(".done").exists():
                folder.mkdir()
                torch.manual_seed(0)
                with contextlib.chdir(folder):
                    main(words)
                folder.with_suffix(".done").touch()
        return latest_run(folder)

    return run


@pytest.fixture(scope="session")
def whole(runs):
    """The run of a configuration that nothing interrupts, with its answers at the end."""
    return lambda config: runs("fit", config, *three_epochs(config), KEEP)


def command_line(command, config, *arguments, small=True):
    arguments = [str(argument) for argument in arguments]
    extra = [*SHRINK, *([*small_data(config), *SMALL_RUN, *narrow(config, arguments)] if small else [])]
    return [command, "--config", str(config), *extra, *arguments]


def small_data(config):
    """Few episodes, wherever the configuration has them."""
    return in_episodes(config, SMALL_DATA) + (SMALL_BATCHES if wraps_episodes(Path(config)) else [])


def in_episodes(config, arguments):
    """Arguments of episodic data, wherever the configuration has them."""
    if not wraps_episodes(Path(config)):
        return arguments
    return [argument.replace("--data.", "--data.episodes.") for argument in arguments]


def narrow(config, arguments=()):
    """A network with few channels, unless the arguments have one, or it is to have the weights of a file."""
    other = any(
        argument.startswith(("--model.backbone", "--model=")) or argument == "--model" for argument in arguments
    )
    return [] if other or backbone_of(config) != "Conv4" else ["--model.backbone.hidden_channels=8"]


def tiny(config):
    """A narrow network, and few inner steps where a configuration has many."""
    return narrow(config) + FEW_STEPS.get(Path(config).stem, [])


def three_epochs(config):
    """A run that also consumes random numbers."""
    dropout = ["--model.backbone.dropout=0.2"] if backbone_of(config) in ("Conv4", "MLP") else []
    return [*tiny(config), *dropout, "--trainer.max_epochs=3"]


def backbone_of(config):
    """The class of a configuration's backbone, if it is named there and starts without the weights of a file."""
    model = content_of(config).get("model", {})
    backbone = model.get("init_args", {}).get("backbone") if isinstance(model, dict) else None
    if not isinstance(backbone, dict):
        return backbone
    return None if backbone.get("init_args", {}).get("weights") else backbone["class_path"]


def latest_run(root):
    runs = (root / "lightning_logs").glob("version_*")
    return max(runs, key=lambda run: int(run.name.removeprefix("version_")), default=None)


def results(run):
    return json.loads((run / "results.json").read_text())


def best_checkpoint(run):
    return next(path for path in (run / "checkpoints").glob("epoch*.ckpt"))
