"""Networks whose modules are reachable by two names: timm's CoaT shares its position encodings between blocks."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from metatransfer import (
    Episodes,
    EpisodicDataModule,
    FineTuneModule,
    InnerLoop,
    LabelledDataModule,
    MAMLModule,
    ProtoNetModule,
    Task,
    TimmBackbone,
)
from metatransfer.data.collections import Arrays

pytest.importorskip("timm")

IMAGES = np.random.default_rng(0).integers(0, 255, (18, 3, 32, 32), dtype=np.uint8)
LABELS = np.arange(18) % 9


def fitted(method, data, tmp_path):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    run = Trainer(max_steps=2, default_root_dir=tmp_path, enable_model_summary=False, limit_val_batches=0, **quiet)
    run.fit(method, datamodule=data)


def names_of(method):
    """The parameters by every name that they have."""
    return dict(method.named_parameters(remove_duplicate=False))


def test_fine_tuning_moves_the_parameters_of_coat(tmp_path):
    method = FineTuneModule(TimmBackbone("coat_lite_mini", image_size=32, in_channels=3), 3)
    before, own, keys = deepcopy(method.state_dict()), names_of(method), list(method.state_dict())
    assert len({id(parameter) for parameter in own.values()}) < len(own)
    fitted(method, LabelledDataModule(Arrays.from_arrays(IMAGES, LABELS % 3), batch_size=4), tmp_path)
    assert list(method.state_dict()) == keys
    assert all(parameter is own[name] for name, parameter in names_of(method).items())
    assert not [name for name in own if torch.equal(before[name], method.state_dict()[name])]


@pytest.mark.parametrize("kind", [ProtoNetModule, MAMLModule])
def test_coat_adapts_and_stays_whole(kind, tmp_path):
    backbone = TimmBackbone("coat_lite_mini", image_size=32, in_channels=3)
    method = kind(backbone) if kind is ProtoNetModule else kind(backbone, 3, inner=InnerLoop(1, 0.1))
    before, own, keys = deepcopy(method.state_dict()), names_of(method), list(method.state_dict())
    x = torch.from_numpy(IMAGES).float() / 255
    predictor = method.adapt(x[:6], torch.arange(6) % 3)
    assert predictor.predict_proba(x[6:]).isfinite().all()
    assert list(method.state_dict()) == keys
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())
    data = EpisodicDataModule(Arrays.from_arrays(IMAGES, LABELS), Task(3, 1, 1), episodes=Episodes(2, 2, 2, 1))
    fitted(method, data, tmp_path)
    assert all(parameter is own[name] for name, parameter in names_of(method).items())
    assert not [name for name in own if torch.equal(before[name], method.state_dict()[name])]
