"""Policies that train a part of a network, and checkpoints that hold nothing else."""

from __future__ import annotations

from functools import partial

import lightning.pytorch as pl
import pytest
import torch

import messages
from metatransfer import (
    L2SP,
    Arrays,
    BitFit,
    Conv4,
    FineTuneModule,
    Full,
    LabelledDataModule,
    LinearProbeThenFineTune,
    LoRA,
    SurgicalFineTuning,
    UserError,
    load,
)

SMALL = {"image_size": 16, "hidden_channels": 4}


def module(policy, weights=None, **options):
    torch.manual_seed(0)
    return FineTuneModule(
        Conv4(**SMALL, weights=weights), 2, policy=policy, optimizer=partial(torch.optim.SGD, lr=0.1), **options
    )


def trainable(method):
    return {name for name, value in method.backbone.named_parameters() if value.requires_grad}


def mistake(match, build):
    with pytest.raises(UserError, match=match) as caught:
        build()
    messages.keep(str(caught.value))


# ---- what trains


def test_biases():
    method = module(BitFit())
    assert trainable(method) == {f"layers.{place}.bias" for place in (0, 1, 4, 5, 8, 9, 12, 13)}
    assert all(value.requires_grad for value in method.head.parameters())


@pytest.mark.parametrize(
    ("block", "places"),
    [
        ("layers.0", (0, 1)),
        (["layers.0", "layers.8"], (0, 1, 8, 9)),
        ("layers.[48]", (4, 5, 8, 9)),
        ("layers", range(16)),
    ],
)
def test_blocks_by_name(block, places):
    method = module(SurgicalFineTuning(block))
    expected = {name for name, _ in method.backbone.named_parameters() if int(name.split(".")[1]) in places}
    assert trainable(method) == expected


def test_a_block_that_does_not_exist():
    mistake(
        "'layers.1' matches no layer.*Did you mean layers.12.*layers.0, layers.4",
        lambda: module(SurgicalFineTuning("layers.1")),
    )


def test_the_head_trains_first():
    method = module(LinearProbeThenFineTune(2, factor=0.1))
    found = []
    for epoch in range(4):
        method.enter_epoch(epoch)
        found.append(len(trainable(method)))
    assert found == [0, 0, 16, 16]
    rates = {name: scale for group in method.parameter_groups() for name, scale in [(group["name"], group["lr_scale"])]}
    assert {scale for name, scale in rates.items() if name.startswith("layers")} == {0.1}
    assert rates["head"] == 1.0
    for arguments in ({"probe_epochs": 0}, {"probe_epochs": 1, "factor": 0.0}):
        mistake(list(arguments)[-1], lambda arguments=arguments: LinearProbeThenFineTune(**arguments))


# ---- checkpoints of what trains


@pytest.fixture
def weights(tmp_path):
    """Files of two networks."""
    found = []
    for seed in range(2):
        torch.manual_seed(seed)
        found.append(str(tmp_path / f"{seed}.pt"))
        torch.save(Conv4(**SMALL).state_dict(), found[-1])
    return found


def data():
    torch.manual_seed(1)
    y = torch.arange(24) % 2
    x = torch.rand(24, 1, 16, 16) * (0.5 + 0.5 * y).view(-1, 1, 1, 1)
    return LabelledDataModule(Arrays.from_arrays(x, y), batch_size=8)


def trainer(folder, **options):
    return pl.Trainer(
        default_root_dir=folder, logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, accelerator="cpu", log_every_n_steps=1, **options,
    )  # fmt: skip


def fitted(method, folder, epochs=2, **options):
    folder.mkdir(exist_ok=True)
    run = trainer(folder, max_epochs=epochs)
    run.fit(method, datamodule=data(), **options)
    path = folder / f"{type(method.policies[0]).__name__}-{epochs}.ckpt"
    run.save_checkpoint(path)
    return path


def content(path):
    return torch.load(path, weights_only=True)


POLICIES = {
    "LoRA": lambda: LoRA(1, alpha=1, adapter_only=True),
    "BitFit": lambda: BitFit(adapter_only=True),
    "block": lambda: SurgicalFineTuning("layers.4", adapter_only=True),
}


@pytest.mark.parametrize(
    "policy", [name if name == "LoRA" else pytest.param(name, marks=pytest.mark.slow) for name in POLICIES]
)
def test_only_what_trains_is_saved(tmp_path, weights, policy):
    method = module(POLICIES[policy](), weights[0])
    path = fitted(method, tmp_path)
    found = content(path)
    frozen = {f"backbone.{name}" for name, value in method.backbone.named_parameters() if not value.requires_grad}
    assert frozen
    assert set(method.state_dict()) - set(found["state_dict"]) == frozen
    card = found["protocol"]["method"]
    assert card["train_base_weights"] == found["base_weights"]
    assert len(found["base_weights"]) == 64
    assert found["protocol"]["initial_weights"]["backbone"]["file"] == "0.pt"
    loaded = load(path)
    assert {name: value.tolist() for name, value in loaded.state_dict().items()} == {
        name: value.tolist() for name, value in method.state_dict().items()
    }
    # the same over weights that are given as a network
    again = FineTuneModule.load_from_checkpoint(path, backbone=Conv4(**SMALL, weights=weights[0])).eval()
    x = torch.rand(3, 1, 16, 16)
    assert torch.equal(again(x), loaded(x))


def test_other_base_weights_are_refused(tmp_path, weights):
    path = fitted(module(POLICIES["LoRA"](), weights[0]), tmp_path)
    mistake(
        "base weights with the checksum [0-9a-f]{12}", lambda: load(path, backbone=Conv4(**SMALL, weights=weights[1]))
    )
    # also where the file was written anew
    torch.save(torch.load(weights[1], weights_only=True), weights[0])
    with pytest.raises(UserError, match="build it with the same weights"):
        load(path)


def test_a_missing_file_of_base_weights_and_random_ones(tmp_path, weights):
    path = fitted(module(POLICIES["BitFit"](), weights[0]), tmp_path)
    (tmp_path / "0.pt").unlink()
    with pytest.raises(UserError, match=r"0.pt' does not exist"):
        load(path)
    mistake("this backbone has random ones", lambda: module(LoRA(adapter_only=True)))


@pytest.mark.slow  # three runs
def test_a_run_goes_on_in_the_same_bits(tmp_path, weights):
    whole = fitted(module(POLICIES["LoRA"](), weights[0]), tmp_path, 4)
    half = fitted(module(POLICIES["LoRA"](), weights[0]), tmp_path, 2)
    resumed = module(POLICIES["LoRA"](), weights[0])
    rest = fitted(resumed, tmp_path / "rest", 4, ckpt_path=half)
    one, two = content(whole), content(rest)
    assert one["state_dict"].keys() == two["state_dict"].keys()
    assert all(torch.equal(value, two["state_dict"][name]) for name, value in one["state_dict"].items())
    assert one["base_weights"] == two["base_weights"]


@pytest.mark.slow  # two runs
def test_an_early_checkpoint_is_loaded_into_a_module_that_has_trained_on(tmp_path, weights):
    """What had not trained then comes from the pretrained weights, not from the weights of today."""

    class Later(LinearProbeThenFineTune):
        adapter_only = True

    method = module(Later(1), weights[0])
    early = fitted(method, tmp_path, 1)
    assert not [name for name in content(early)["state_dict"] if name.endswith("0.weight") and name != "head.weight"]
    state = {name: value.clone() for name, value in method.state_dict().items()}
    late = fitted(method, tmp_path, 3, ckpt_path=early)
    assert set(content(late)["state_dict"]) == set(method.state_dict())
    assert not torch.equal(method.backbone.layers[0].weight, state["backbone.layers.0.weight"])
    trainer(tmp_path).validate(method, data(), ckpt_path=early, verbose=False)
    assert all(torch.equal(value, state[name]) for name, value in method.state_dict().items())


def test_whole_checkpoints_are_as_before(tmp_path, weights):
    path = fitted(module([LoRA(1, alpha=1), Full()], weights[0]), tmp_path)
    assert "base_weights" not in content(path)
    (tmp_path / "0.pt").unlink()
    assert isinstance(load(path).policies[0], LoRA)
    merged = load(path).merged()
    torch.save({"state_dict": merged.state_dict()}, tmp_path / "merged.ckpt")
    x = torch.rand(3, 1, 16, 16)
    # merged weights, and those of the checkpoint as it is, are weights of the plain network
    for file in (tmp_path / "merged.ckpt", path):
        plain = Conv4(**SMALL, weights=str(file)).eval()
        assert len(plain.weights_report.kept) == len(plain.state_dict())
        torch.testing.assert_close(plain(x), load(path).backbone(x), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_penalty_keeps_its_reference(tmp_path, weights):
    path = fitted(module([BitFit(adapter_only=True), L2SP()], weights[0]), tmp_path)
    assert isinstance(load(path).policies[1], L2SP)
