"""Two small domains, networks for them, and runs on them."""

from __future__ import annotations

import warnings
from functools import partial

import lightning.pytorch as pl
import numpy as np
import torch
from torch import nn

from contract import methods
from metatransfer import Collection
from metatransfer.batches import DomainBatch
from metatransfer.data import DomainDataModule
from metatransfer.data.sources import TensorSource
from metatransfer.methods.domain import DomainAdaptationModule
from metatransfer.methods.domain.adaptation import Adaptation, Ramp
from metatransfer.methods.fitted import FittedModule
from metatransfer.nn import MLP, PerceptronHead
from serving_by_names import labelled

CLASSES = 3
GROUPS = {"adaptation": Adaptation, "ramp": Ramp}
# every concrete method of the package; those that are fitted at once take no steps
METHODS = sorted(methods(DomainAdaptationModule), key=lambda kind: kind.__name__)
EVERY = [kind for kind in METHODS if not issubclass(kind, FittedModule)]
ADAPTING = [kind for kind in EVERY if kind.uses_target]


class CloudPoints(Collection):
    """Three clouds on a ring, and a third number that follows the class in the source and chance in the target."""

    def __init__(self, shortcut=True, offset=0.0, count=240, draw=0):
        self.shortcut, self.offset, self.count, self.draw = shortcut, offset, count, draw

    def parts(self):
        generator = np.random.default_rng(self.draw)
        labels = np.arange(self.count) % CLASSES
        angle = 2 * np.pi * labels / CLASSES
        ring = 2 * np.stack([np.cos(angle), np.sin(angle)], 1) + 0.5 * generator.standard_normal((self.count, 2))
        told = 3 * (labels - 1) + 0.3 * generator.standard_normal(self.count)
        chance = 2 + 3 * generator.standard_normal(self.count)
        x = np.concatenate([ring, (told if self.shortcut else chance)[:, None]], 1) + self.offset
        names = [f"cloud {i}" for i in range(CLASSES)]
        return {"all": TensorSource(torch.from_numpy(x.astype(np.float32)), labels, names, "clouds")}


def served(kind):
    """Makes data modules of a collection of clouds."""

    def make(shortcut=True, offset=0.0, count=240, draw=0, **options):
        return labelled(kind(shortcut, offset, count, draw), **options)

    return make


Clouds = served(CloudPoints)


def clouds(batch_size=24, seed=0, **arguments):
    """A source with a shortcut to its classes, and a target where it leads astray."""
    source = Clouds(draw=1, val_fraction=0.2, test_fraction=0.2)
    target = Clouds(shortcut=False, draw=2, val_fraction=0.2, test_fraction=0.4)
    arguments = {"sources": {"plain": source}, "targets": {"astray": target}} | arguments
    return DomainDataModule(batch_size=batch_size, seed=seed, **arguments)


def module(kind, *, norm=True, hidden=(16, 16), dropout=0.0, seed=0, **arguments):
    """A method on a small perceptron."""
    torch.manual_seed(seed)
    for group, kinds in GROUPS.items():
        inside = {name: arguments.pop(name) for name in kinds.__dataclass_fields__ if name in arguments}
        arguments |= {group: kinds(**inside)} if inside else {}
    given = {"head": partial(PerceptronHead, hidden_sizes=(8,)), "optimizer": partial(torch.optim.Adam, lr=0.01)}
    made = kind(MLP((3,), hidden, norm=norm, dropout=dropout), CLASSES, **(given | arguments))
    if "sample_weights" in dict(made.named_buffers()):  # a fit finds them; a batch alone needs some
        made.sample_weights = torch.ones(60)
    return made


def trainer(**arguments):
    settings = {
        "logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu",
        "enable_checkpointing": False, "num_sanity_val_steps": 0, "max_epochs": 2,
    }  # fmt: skip
    return pl.Trainer(**(settings | arguments))


def fit(method, data, *, seed=0, **arguments):
    """Trains a method; returns its trainer."""
    pl.seed_everything(seed, verbose=False)
    running = trainer(**arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        running.fit(method, datamodule=data)
    return running


def batch(source=6, target=5, seed=0, dtype=torch.float32):
    """A training batch whose sides differ in size."""
    generator = torch.Generator().manual_seed(seed)
    return DomainBatch(
        torch.randn(source, 3, generator=generator, dtype=dtype),
        torch.arange(source) % CLASSES,
        torch.randn(target, 3, generator=generator, dtype=dtype) + 1,
        torch.arange(source),
        torch.arange(target),
        torch.zeros(source, dtype=torch.long),
        torch.zeros(target, dtype=torch.long),
    )


def same(first, second):
    """Whether two modules have equal weights and buffers."""
    one, two = first.state_dict(), second.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def norms(network):
    return [part for part in network.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
