"""Every method beats training on the source alone where the source has a shortcut that the target has not."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from domain_toys import Clouds, clouds, fit, module

from metatransfer.methods.domain.adabn import AdaBNModule
from metatransfer.methods.domain.adda import ADDAModule
from metatransfer.methods.domain.cdan import CDANModule
from metatransfer.methods.domain.dan import DANModule
from metatransfer.methods.domain.dann import DANNModule
from metatransfer.methods.domain.deep_coral import DeepCORALModule
from metatransfer.methods.domain.mcd import MCDModule
from metatransfer.methods.domain.source_only import SourceOnlyModule
from metatransfer.nn import LinearHead

METHODS = {
    "dann": (DANNModule, {"max_lambda": 3.0}),
    "cdan": (CDANModule, {"max_lambda": 1.0}),
    "cdan+e": (CDANModule, {"max_lambda": 1.0, "entropy": True}),
    "dan": (DANModule, {}),
    "deep coral": (DeepCORALModule, {"layers": ["features"], "trade_off": 300.0}),
    "mcd": (MCDModule, {}),
    "adda": (ADDAModule, {"adversarial_optimizer": partial(torch.optim.Adam, lr=0.002)}),
}


def accuracy(kind, data=clouds, *, epochs=20, norm=False, **arguments):
    """Of the target, in the mean over three seeds."""
    found = []
    for seed in range(3):
        method = module(kind, norm=norm, hidden=(16, 8), head=LinearHead, seed=seed, **arguments)
        served = data(seed=seed)
        running = fit(method, served, seed=seed, max_epochs=epochs, limit_val_batches=0 if not norm else 1.0,
                      check_val_every_n_epoch=epochs)  # fmt: skip
        found.append(running.test(method, datamodule=served, verbose=False)[0]["test/accuracy"])
    return sum(found) / len(found)


@pytest.fixture(scope="module")
def source_only():
    torch.set_num_threads(1)
    return accuracy(SourceOnlyModule)


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=() if one in {"dann", "deep coral"} else pytest.mark.slow) for one in METHODS]
)
def test_it_beats_the_source_alone(name, source_only):
    kind, arguments = METHODS[name]
    assert 0.4 < source_only < 0.75
    assert accuracy(kind, **arguments) > source_only + 0.04


def test_adabn_takes_back_a_shift():
    def moved(seed):
        return clouds(seed=seed, targets={"moved": Clouds(offset=5.0, draw=2, val_fraction=0.2, test_fraction=0.4)})

    plain = accuracy(SourceOnlyModule, moved, epochs=10, norm=True)
    assert accuracy(AdaBNModule, moved, epochs=10, norm=True) > plain + 0.1
