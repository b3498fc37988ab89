"""Constructor arguments as plain data, and back."""

import copy
import enum
import functools
import importlib
import inspect
import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from metatransfer.arguments import RemembersArguments, plain_arguments
from metatransfer.methods import MAMLModule, ProtoNetModule
from metatransfer.methods.options import InnerLoop
from metatransfer.nn import MLP, Backbone, Conv4, CosineHead, LinearHead


class Wrapper(Backbone):
    """A backbone that takes another one, a path and positional arguments."""

    def __init__(self, inner: Backbone, scale: float = 1.0, path: Path | None = None, extra=None) -> None:
        super().__init__()
        self.inner, self.scale = inner, scale
        self.out_features = inner.out_features

    def forward(self, x):
        return self.scale * self.inner(x)


class Options(Backbone):
    def __init__(self, width: int, **options: float) -> None:
        super().__init__()
        self.out_features, self.options = width, options

    def forward(self, x):
        return x


class Colour(enum.StrEnum):
    RED = "red"


def rebuild(value):
    """What a YAML file with class_path and init_args means."""
    if isinstance(value, dict) and "class_path" in value:
        module, _, name = value["class_path"].rpartition(".")
        kind = getattr(importlib.import_module(module), name)
        return kind(**{key: rebuild(item) for key, item in value.get("init_args", {}).items()})
    return value


def described(module):
    return plain_arguments({"module": module})["module"]


def test_plain_values_pass_as_they_are():
    values = {"a": None, "b": True, "c": 3, "d": 0.5, "e": "word", "f": [1, "x"], "g": {"h": 2}}
    assert plain_arguments(values) == values
    assert plain_arguments({"t": (1, (2, 3)), "s": torch.Size([4, 5])}) == {"t": [1, [2, 3]], "s": [4, 5]}
    assert plain_arguments({}) == {}


def test_paths_become_strings():
    assert plain_arguments({"path": Path("a") / "b", "many": [Path("c")]}) == {"path": "a/b", "many": ["c"]}


def test_what_cannot_be_written_down_is_left_out():
    values = {"f": lambda: 0, "o": object(), "list": [1, lambda: 0], "t": torch.zeros(2), "keep": 1}
    assert plain_arguments(values) == {"keep": 1}
    assert plain_arguments({"partial": functools.partial(nn.Linear, 3)}) == {}  # positional: no names to write
    assert plain_arguments({"linear": nn.Linear(2, 2)}) == {}  # nobody noted its arguments


def test_classes_and_partials():
    assert plain_arguments({"head": LinearHead}) == {"head": {"class_path": "metatransfer.LinearHead"}}
    partial = functools.partial(CosineHead, scale=3.0)
    assert plain_arguments({"head": partial})["head"] == {
        "class_path": "metatransfer.CosineHead",
        "init_args": {"scale": 3.0},
    }


def test_positional_and_keyword_arguments_are_noted_alike():
    expected = {
        "class_path": "metatransfer.Conv4",
        "init_args": {"in_channels": 3, "image_size": 32},
    }
    assert (
        described(Conv4(3, 32)) == described(Conv4(3, image_size=32)) == described(Conv4(image_size=32, in_channels=3))
    )
    assert json.loads(json.dumps(described(Conv4(3, 32)))) == expected


def test_nested_modules_round_trip():
    net = Wrapper(Wrapper(MLP((2,), hidden=(5, 4), norm=True), 2.0), path=Path("x"), extra=lambda: 0)
    plain = described(net)
    assert plain["init_args"]["path"] == "x"
    assert "extra" not in plain["init_args"]
    again = rebuild(json.loads(json.dumps(plain)))
    again.load_state_dict(net.state_dict())
    x = torch.randn(3, 2)
    assert torch.equal(again.eval()(x), net.eval()(x))
    assert described(again) == plain


@pytest.mark.parametrize("copier", [copy.deepcopy, copy.copy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_remember_too(copier):
    net = Wrapper(MLP((2,), (3,)), 2.0)
    assert described(copier(net)) == described(net)


def test_wrong_arguments_raise_pythons_own_error():
    with pytest.raises(TypeError, match="nonsense"):
        MLP(nonsense=1)
    with pytest.raises(TypeError, match="inner"):
        Wrapper()


class Plain(RemembersArguments):
    def __init__(self, a, b=2, *, c=3):
        pass


def test_any_class_can_remember_its_arguments():
    assert Plain(1, c=4)._init_arguments == {"a": 1, "c": 4}


@pytest.mark.parametrize("kind", [Plain, Wrapper, Conv4, MAMLModule, ProtoNetModule], ids=lambda kind: kind.__name__)
def test_classes_show_the_signature_of_their_constructor(kind):
    shown, real = inspect.signature(kind), inspect.signature(kind.__init__)
    assert list(shown.parameters.values()) == list(real.parameters.values())[1:]


def test_instances_show_the_signature_of_their_call():
    assert "hidden" not in inspect.signature(MLP((2,), (3,))).parameters


class Outer:
    class Inner(Plain):
        pass


def test_class_paths_are_the_shortest_that_name_the_same_object(monkeypatch):
    def path(kind):
        return plain_arguments({"kind": kind})["kind"]["class_path"]

    assert path(Conv4) == "metatransfer.Conv4"
    assert path(torch.optim.Adam) == "torch.optim.Adam"
    assert path(InnerLoop) == "metatransfer.InnerLoop"
    assert path(Outer.Inner) == f"{__name__}.Outer.Inner"
    monkeypatch.setattr("metatransfer.Conv4", MLP)  # the same name, another class
    assert path(Conv4) == "metatransfer.nn.Conv4"


def test_noted_arguments_register_nothing():
    net = Wrapper(MLP((2,), (3,)))
    assert [name for name, _ in net.named_modules() if "_init_arguments" in name] == []
    assert len(list(net.parameters())) == 2
    assert all(key.startswith("inner.") for key in net.state_dict())


def test_keyword_catchers_round_trip():
    again = rebuild(described(Options(4, rate=0.5)))
    assert again.out_features == 4
    assert again.options == {"rate": 0.5}


@pytest.mark.parametrize(
    "value", [np.float64(0.5), np.int64(3), np.float32(0.5), np.bool_(True), Colour.RED, torch.tensor(0.5)], ids=repr
)
def test_whatever_is_kept_can_be_read_with_weights_only(value):
    """A value either is left out or is plain; a numpy scalar that slips through makes the checkpoint unreadable."""
    buffer = io.BytesIO()
    torch.save(plain_arguments({"value": value, "list": [value]}), buffer)
    buffer.seek(0)
    torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("value", [np.int64(7), np.float32(0.5)], ids=repr)
def test_numpy_numbers_are_kept_as_numbers(value):
    """Sizes often come from arrays; left out, the module would be rebuilt with another size."""
    assert plain_arguments({"value": value}) == {"value": value.item()}


def test_a_list_that_changes_later_does_not_change_what_was_noted():
    widths = [3, 4]
    net = MLP((2,), widths)
    widths.append(5)
    assert described(net)["init_args"]["hidden"] == [3, 4]


@pytest.mark.parametrize(
    "build",
    [
        lambda: MAMLModule(
            MLP((2,), (4,)), 3, functools.partial(CosineHead, scale=4.0), inner=InnerLoop(steps=1, lr=0.1)
        ),
        lambda: ProtoNetModule(backbone=MLP((2,), (4,)), distance="cosine", scale=3.0),
    ],
)
def test_modules_save_plain_hyperparameters(build):
    module = build()
    plain = dict(module.hparams)
    assert plain.pop("_instantiator")
    json.dumps(plain)
    assert plain["backbone"]["class_path"] == "metatransfer.MLP"
    copied = copy.deepcopy(module)
    assert copied.hparams == module.hparams
    again = pickle.loads(pickle.dumps(module))
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in module.state_dict().items())
