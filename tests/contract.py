"""What the contract tests run over: every concrete method, made small, and episodes for it.

A method is found by walking the subclasses of the bases; how to build it small follows from its YAML, so that a new
method needs nothing here.
"""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import yaml
from jsonargparse import ArgumentParser

import metatransfer
from metatransfer import ClassBatches, Episode, Glyphs, LabelledBatch
from metatransfer.cli.messages import subclasses
from metatransfer.methods import EpisodicModule, MethodModule
from metatransfer.methods.outputs import point_of
from serving_by_names import episodic

ROOT = Path(__file__).resolve().parents[1]
EVERY_CONFIG = sorted((ROOT / "configs").rglob("*.yaml"))


def content_of(path):
    """What a YAML file says, not to be changed: it is asked for several times for each of many files."""
    return _content(Path(path).read_text())


@functools.cache
def _content(text):
    return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # the first takes a tenth of the time


def data_of(path):
    return content_of(path)["data"]


def needs_files(path):
    """Whether a YAML's data lies in a folder or a file of the user's."""
    return _names_files(data_of(path)["init_args"])


def _names_files(arguments):
    inside = [domain for side in ("sources", "targets") for domain in arguments.get(side, {}).values()]
    inside += [arguments.get("source"), arguments.get("episodes")]
    return bool({"root", "path"} & set(arguments)) or any(
        _names_files(one.get("init_args", {})) for one in inside if isinstance(one, dict)
    )


def serves_samples(path):
    """Whether a YAML's data are labelled samples, for classifiers."""
    return data_of(path)["class_path"] in ("LabelledDataModule", "DomainDataModule")


def serves_sequences(path):
    """Whether a YAML's data are sequences of bits, which are no tasks."""
    return data_of(path)["class_path"] == "CopyTask"


def serves_stories(path):
    """Whether a YAML's data are questions about stories, which only some methods read."""
    source = data_of(path)["init_args"].get("source")
    return isinstance(source, dict) and source["class_path"] == "Babi"


def wraps_episodes(path):
    """Whether a YAML's data are labelled batches around an episodic data module."""
    return content_of(path).get("data", {}).get("class_path") == "ClassBatches"


def serves_domains(path):
    """Whether a YAML's data are the sources and targets of domain adaptation."""
    return "sources" in data_of(path).get("init_args", {})


def name_of(path):
    return path.relative_to(ROOT / "configs").with_suffix("").as_posix()


def canaries(paths, *chosen):
    """Parameters for all configurations, of which only the chosen ones are not slow."""
    assert set(chosen) <= set(map(name_of, paths)), chosen
    return [
        pytest.param(path, id=name_of(path), marks=() if name_of(path) in chosen else pytest.mark.slow)
        for path in paths
    ]


class KeepAnswers(pl.Callback):
    """Saves the method's predictions at the end of its training in the folder of its run."""

    def on_fit_end(self, trainer, module):
        torch.save(answers(module), Path(trainer.log_dir) / "answers.pt")


def answers(module):
    """The predictions of a method of the shipped configurations for fixed random samples."""
    modes = [(part, part.training) for part in module.modules()]
    shape = tuple(module.backbone.in_shape or (1, 28, 28))
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(20, *shape, generator=generator).to(next(module.parameters(), torch.zeros(())))
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        if isinstance(module, EpisodicModule):
            regresses = len(shape) == 1 and module.num_outputs is not None  # one number in, one number out
            y = x[:10] if regresses else torch.arange(10) % 5
            found = point_of(module.adapt(x[:10], y).outputs(x[10:]))
        else:
            found = module.eval()(x)
    for part, training in modes:
        part.training = training
    return found


_SHIPPED = [path for path in EVERY_CONFIG if not needs_files(path) and not serves_sequences(path)]
CONFIGS = [path for path in _SHIPPED if not serves_samples(path)]
SAMPLE_CONFIGS = [
    path for path in _SHIPPED if serves_samples(path) and not serves_domains(path) and not serves_stories(path)
]
DOMAIN_CONFIGS = [path for path in _SHIPPED if serves_domains(path)]
# one of each kind of training, for what need not be seen of every configuration
KINDS = [path for path in CONFIGS if name_of(path) in ("maml", "maml_plus_plus", "protonet", "reptile", "pretrain")]
WAYS = 3


def methods(base=MethodModule):
    return [kind for kind in subclasses(base).values() if kind.__module__.startswith("metatransfer.")]


@functools.cache
def config_of(kind):
    """The YAML whose model is this method, by the file stem of its module as HOUSE.md has it."""
    stem = kind.__module__.rpartition(".")[2]
    found = [ROOT / "configs" / f"{stem}.yaml", *sorted((ROOT / "configs").glob(f"*/{stem}.yaml"))]
    path = next((path for path in found if path.exists()), None)
    assert path, f"{kind.__name__} has no configs/{stem}.yaml"
    return path


def configs_of(base):
    """The YAML files of all methods of a kind, sorted."""
    return sorted({config_of(kind) for kind in methods(base)})


def method_of(path, base=MethodModule):
    """The method of a YAML file."""
    return next(kind for kind in methods(base) if config_of(kind) == path)


def small(kind, **changes):
    """The method of its YAML with a small backbone for 28x28 images."""
    parser, settings = _described(kind, json.dumps(changes, sort_keys=True))
    return parser.instantiate(settings.clone()).module


@functools.cache  # to describe a method takes longer than to build it
def _described(kind, changes):
    arguments = copy.deepcopy(content_of(config_of(kind))["model"]["init_args"])
    if "backbone" in kind.__init__.__annotations__:
        arguments["backbone"] = {"class_path": "Conv4", "init_args": {"hidden_channels": 4}}
    if "num_outputs" in kind.__init__.__annotations__:
        arguments["num_outputs"] = WAYS
    for name in ("num_classes", "train_classes", "vocabulary_size"):
        if name in kind.__init__.__annotations__:
            arguments[name] = WAYS
    if "inner" in arguments:
        arguments["inner"]["steps"] = min(arguments["inner"]["steps"], 6)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, "module", fail_untyped=False)
    return parser, parser.parse_object({"module": arguments | json.loads(changes)})


def episode(tasks=2, shots=2, queries=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda count: torch.rand(tasks, WAYS * count, 1, 28, 28, generator=generator)  # noqa: E731
    labels = lambda count: torch.arange(WAYS).repeat_interleave(count).repeat(tasks, 1)  # noqa: E731
    return Episode(draw(shots), labels(shots), draw(queries), labels(queries), torch.arange(WAYS).repeat(tasks, 1))


def training_batch(kind, **arguments):
    """What a method learns from: an episode, or the same samples with their labels."""
    batch = episode(**arguments)
    if kind.learns_from is Episode:
        return batch
    return LabelledBatch(torch.cat([batch.support_x, batch.query_x], 1).flatten(0, 1), labels_of(batch))


def labels_of(batch):
    return torch.cat([batch.support_y, batch.query_y], 1).flatten()


def glyphs_for(kind, tasks_per_batch, **episodes):
    """Glyphs as a method learns from them, an epoch short; as many labelled samples in a batch as tasks."""
    data = episodic(Glyphs(), per_batch=tasks_per_batch, **episodes)
    return data if kind.learns_from is Episode else ClassBatches(data, batch_size=tasks_per_batch)


__all__ = [
    "CONFIGS",
    "DOMAIN_CONFIGS",
    "EVERY_CONFIG",
    "KINDS",
    "ROOT",
    "SAMPLE_CONFIGS",
    "WAYS",
    "EpisodicModule",
    "KeepAnswers",
    "answers",
    "canaries",
    "config_of",
    "content_of",
    "episode",
    "glyphs_for",
    "metatransfer",
    "methods",
    "name_of",
    "small",
    "training_batch",
    "wraps_episodes",
]
