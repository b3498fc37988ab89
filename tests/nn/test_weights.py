"""Weights of one network in another: what is kept, what is refused, and what a checkpoint needs no file for."""

import copy
import hashlib

import lightning.pytorch as pl
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from contract import episode
from metatransfer import MLP, Backbone, Conv4, MAMLModule, ProtoNetModule, ResNet12, UserError
from metatransfer.methods.options import InnerLoop
from metatransfer.methods.protocol import protocol_card
from metatransfer.nn.weights import load_weights, no_weight_files

METHODS = {
    "maml": lambda backbone: MAMLModule(backbone, num_outputs=3, inner=InnerLoop(steps=1, lr=0.1)),
    "protonet": lambda backbone: ProtoNetModule(backbone, distance="cosine"),
}


def small(**arguments):
    return Conv4(hidden_channels=4, **arguments)


def checkpoint(module, path):
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path, weights_only=True)
    module.trainer = None
    return path


def same(one, two):
    one, two = one.state_dict(), two.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture
def trained():
    """A network that no initialisation gives."""
    network = small()
    with torch.no_grad():
        for value in network.state_dict().values():
            value += 1
    return network


def holding(state):
    network = small()
    network.load_state_dict(state)
    return network


FORMS = {
    "state.pt": lambda state, path: torch.save(state, path),
    "state.pth": lambda state, path: torch.save({"epoch": 3, "state_dict": state}, path),
    "old.pt": lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False),
    "prefixed.pt": lambda state, path: torch.save({f"backbone.{name}": value for name, value in state.items()}, path),
    "parallel.pt": lambda state, path: torch.save(nn.DataParallel(holding(state)).state_dict(), path),
    "compiled.pt": lambda state, path: torch.save({f"_orig_mod.{n}": v for n, v in state.items()}, path),
    "both.pt": lambda state, path: torch.save({f"module._orig_mod.{n}": v for n, v in state.items()}, path),
    "inner.pt": lambda state, path: torch.save({n.replace(".", "._orig_mod.", 1): v for n, v in state.items()}, path),
    "others.ckpt": lambda state, path: torch.save({"state_dict": {f"model.{n}": v for n, v in state.items()}}, path),
    "ours.ckpt": lambda state, path: torch.save(
        {"state_dict": {f"backbone._orig_mod.{n}": v for n, v in state.items()} | {"head.weight": torch.zeros(2)}}, path
    ),
    "references.pth": lambda state, path: torch.save({"model": state, "epoch": 3}, path),
    "tutorial.pt": lambda state, path: torch.save({"epoch": 3, "model_state_dict": state}, path),
    "nested.pt": lambda state, path: torch.save({"model": {"state_dict": state}, "lr": torch.ones(1)}, path),
    "plain.safetensors": lambda state, path: save_file(state, path),
    "prefixed.safetensors": lambda state, path: save_file({f"backbone.{n}": v for n, v in state.items()}, path),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_file(name, trained, tmp_path):
    FORMS[name](trained.state_dict(), tmp_path / name)
    network = small(weights=str(tmp_path / name))
    assert same(network, trained)
    report = network.weights_report
    assert set(report.kept) == set(trained.state_dict())
    assert (report.dropped, report.new) == ({}, ())
    assert report.file == name
    assert report.sha256 == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "build",
    [
        lambda weights=None: MLP((1, 6, 6), (16, 8), norm=True, weights=weights),
        lambda weights=None: ResNet12(1, (4, 6, 8, 10), weights=weights),
    ],
)
def test_every_backbone_has_the_argument(build, tmp_path):
    network = build()
    torch.save(network.state_dict(), tmp_path / "a.pt")
    torch.manual_seed(1)
    assert not same(build(), network)
    assert same(build(str(tmp_path / "a.pt")), network)


@pytest.mark.parametrize(("first", "second"), [("maml", "protonet"), ("protonet", "maml")])
def test_from_one_method_into_another(first, second, trained, tmp_path):
    path = checkpoint(METHODS[first](trained), tmp_path / "first.ckpt")
    module = METHODS[second](small(weights=str(path)))
    assert same(module.backbone, trained)
    report = module.backbone.weights_report
    assert not report.dropped  # heads and metrics are of no backbone
    assert protocol_card(module)["initial_weights"] == {
        "backbone": {"file": "first.ckpt", "sha256": report.sha256, "kept": 28, "dropped": 0, "new": 0}
    }


def test_the_loaded_network_adapts_and_learns_through_the_inner_loop(tmp_path):
    """The outer gradient is that of the same network whose weights came another way."""
    origin = METHODS["protonet"](small())
    path = checkpoint(origin, tmp_path / "a.ckpt")
    one, two = METHODS["maml"](small(weights=str(path))), METHODS["maml"](copy.deepcopy(origin.backbone))
    two.head.load_state_dict(one.head.state_dict())
    for module in (one, two):
        module.training_loss(episode())[0].backward()
    for (name, value), other in zip(one.named_parameters(), two.parameters(), strict=True):
        assert value.grad.abs().sum() > 0, name
        assert torch.equal(value.grad, other.grad), name
    batch = episode(tasks=1)
    answers = [module.adapt(batch.support_x[0], batch.support_y[0]).outputs(batch.query_x[0]) for module in (one, two)]
    assert torch.equal(*answers)


def test_what_does_not_fit_is_named(trained, tmp_path):
    state = trained.state_dict()
    state["layers.0.weight"] = torch.zeros(4, 3, 3, 3)
    state["layers.1.weight"] = torch.zeros(4, dtype=torch.int8)
    del state["layers.1.bias"]
    state["classifier.weight"] = torch.zeros(7, 4)
    torch.save(state, tmp_path / "a.pt")
    torch.manual_seed(3)
    network = small(weights=str(tmp_path / "a.pt"))
    torch.manual_seed(3)
    fresh = small()
    report = network.weights_report
    assert report.dropped == {
        "layers.0.weight": "shape (4, 3, 3, 3) in the file, (4, 1, 3, 3) in the network",
        "layers.1.weight": "torch.int8 in the file, torch.float32 in the network",
        "classifier.weight": "not in the network",
    }
    assert report.new == ("layers.0.weight", "layers.1.weight", "layers.1.bias")
    for name, value in network.state_dict().items():
        assert torch.equal(value, (fresh if name in report.new else trained).state_dict()[name]), name
    text = str(report)
    assert text.startswith("weights of 'a.pt' (sha256 ")
    assert ": 25 kept, 3 dropped, 3 new" in text
    for name in {*report.dropped, *report.new}:
        assert name in text


def refused(build, *words):
    with pytest.raises(UserError) as caught:
        build()
    sentence = str(caught.value)
    assert all(word in sentence for word in words), sentence
    assert "\n" not in sentence
    assert sentence.endswith((".", "?"))


class Anything:
    pass


@pytest.mark.parametrize(
    ("name", "write", "words"),
    [
        ("empty.pt", lambda p: p.write_bytes(b""), "is empty"),
        ("empty.safetensors", lambda p: p.write_bytes(b""), "is empty"),
        ("text.ckpt", lambda p: p.write_text("hello world"), "cannot be read as a torch checkpoint"),
        ("text.safetensors", lambda p: p.write_text("hello world"), "cannot be read as safetensors"),
        ("whole.pt", lambda p: torch.save(nn.Linear(2, 2), p), "Python objects, which could run code"),
        ("inside.pt", lambda p: torch.save({"a": Anything()}, p), "Python objects, which could run code"),
        ("list.pt", lambda p: torch.save([torch.zeros(1)], p), "is a list"),
        ("tensor.pt", lambda p: torch.save(torch.zeros(1), p), "is a Tensor"),
        ("numbers.pt", lambda p: torch.save({"accuracy": 0.5}, p), "has only accuracy"),
        ("nothing.pt", lambda p: torch.save({}, p), "has only nothing"),
        ("folder", lambda p: p.mkdir(), "is a folder"),
    ],
)
def test_what_is_no_file_of_weights(name, write, words, tmp_path):
    write(tmp_path / name)
    refused(lambda: small(weights=str(tmp_path / name)), name, words)


def test_a_file_that_is_not_there(trained, tmp_path):
    torch.save(trained.state_dict(), tmp_path / "first.pt")
    refused(lambda: small(weights=str(tmp_path / "frist.pt")), "does not exist", "first.pt")


def test_a_truncated_checkpoint(trained, tmp_path):
    torch.save(trained.state_dict(), tmp_path / "a.pt")
    content = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes(content[: len(content) // 2])
    refused(lambda: small(weights=str(tmp_path / "a.pt")), "cannot be read")


def test_weights_of_another_architecture(trained, tmp_path):
    torch.save(trained.state_dict(), tmp_path / "a.pt")
    path = str(tmp_path / "a.pt")
    refused(lambda: Conv4(hidden_channels=8, weights=path), "another architecture", "0 of the 16", "(4, 1, 3, 3)")
    refused(lambda: MLP((3,), weights=path), "another architecture", "0 of the 4", "layers.1.weight")
    state = {name: value for name, value in trained.state_dict().items() if int(name.split(".")[1]) < 5}
    torch.save(state, tmp_path / "a.pt")
    refused(lambda: small(weights=path), "another architecture", "6 of the 16")


def test_weights_that_are_not_finite(trained, tmp_path):
    state = trained.state_dict()
    state["layers.4.bias"][2] = torch.nan
    torch.save(state, tmp_path / "a.pt")
    refused(lambda: small(weights=str(tmp_path / "a.pt")), "'layers.4.bias' holds NaN")


def test_the_same_width_in_another_precision(trained, tmp_path):
    torch.save({name: value.half() for name, value in trained.state_dict().items()}, tmp_path / "a.pt")
    loaded = {n: v for n, v in small(weights=str(tmp_path / "a.pt")).state_dict().items() if v.is_floating_point()}
    assert all(value.dtype == torch.float32 for value in loaded.values())
    assert torch.allclose(loaded["layers.0.weight"], trained.layers[0].weight, atol=1e-3)


class Wrapped(Backbone):
    """A user's own, whose inner network has the very name that checkpoints use."""

    def __init__(self, weights: str | None = None):
        super().__init__()
        self.backbone = nn.Linear(2, 3)
        self.out_features = 3
        self.load_weights(weights)

    def forward(self, x):
        return self.backbone(x)


def test_a_users_own_backbone(tmp_path):
    network = Wrapped()
    torch.save(network.state_dict(), tmp_path / "plain.pt")
    checkpoint(ProtoNetModule(network), tmp_path / "method.ckpt")
    for name in ("plain.pt", "method.ckpt"):
        assert same(Wrapped(str(tmp_path / name)), network)
    report = Wrapped().load_weights(tmp_path / "plain.pt")
    assert report.kept == ("backbone.weight", "backbone.bias")


def test_a_prefix_is_only_that_of_wrappers(tmp_path):
    """Layers of another network are not taken for a wrapped one."""
    torch.save({f"{name}.weight": torch.ones(3, 2) for name in ("encoder", "decoder")}, tmp_path / "a.pt")
    refused(lambda: Wrapped(str(tmp_path / "a.pt")), "another architecture", "0 of the 2")


def test_a_compiled_network_takes_plain_weights(trained, tmp_path):
    torch.save(trained.state_dict(), tmp_path / "a.pt")
    network = small()
    load_weights(torch.compile(network), tmp_path / "a.pt")
    assert same(network, trained)


def test_a_checkpoint_does_not_need_the_file(trained, tmp_path):
    torch.save(trained.state_dict(), tmp_path / "a.pt")
    module = METHODS["maml"](small(weights=str(tmp_path / "a.pt")))
    card = protocol_card(module)["initial_weights"]
    path = checkpoint(module, tmp_path / "b.ckpt")
    (tmp_path / "a.pt").unlink()
    loaded = MAMLModule.load_from_checkpoint(path, weights_only=True)
    assert same(loaded, module)
    assert loaded.backbone.weights_report is None
    assert protocol_card(loaded)["initial_weights"] == card
    # and goes on telling where they came from
    again = MAMLModule.load_from_checkpoint(checkpoint(loaded, tmp_path / "c.ckpt"), weights_only=True)
    assert protocol_card(again)["initial_weights"] == card
    with pytest.raises(UserError, match="does not exist"):
        small(weights=str(tmp_path / "a.pt"))


def test_a_checkpoint_wins_over_the_file_of_the_module_that_takes_it(trained, tmp_path):
    torch.save(trained.state_dict(), tmp_path / "a.pt")
    path = checkpoint(METHODS["protonet"](small()), tmp_path / "b.ckpt")
    module = METHODS["protonet"](small(weights=str(tmp_path / "a.pt")))
    assert "initial_weights" in protocol_card(module)
    module.on_load_checkpoint(torch.load(path, weights_only=True))
    assert "initial_weights" not in protocol_card(module)


def test_files_are_left_alone_for_a_while_only(trained, tmp_path):
    torch.save(trained.state_dict(), tmp_path / "a.pt")
    path = str(tmp_path / "a.pt")
    with no_weight_files():
        assert not same(small(weights=path), trained)
    assert same(small(weights=path), trained)


def test_an_untrained_twin_is_untrained(trained, tmp_path):
    torch.save(trained.state_dict(), tmp_path / "a.pt")
    given = ProtoNetModule(small(weights=str(tmp_path / "a.pt"))).untrained_twin()
    plain = ProtoNetModule(small()).untrained_twin()
    assert same(given, plain)


def test_arguments_are_remembered_as_given(trained, tmp_path):
    torch.save(trained.state_dict(), tmp_path / "a.pt")
    module = ProtoNetModule(small(weights=str(tmp_path / "a.pt")))
    assert module.hparams["backbone"]["init_args"] == {"hidden_channels": 4, "weights": str(tmp_path / "a.pt")}
