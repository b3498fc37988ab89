"""Predictors as files: equal bits after loading, and one sentence for what cannot be loaded."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

import messages
from contract import canaries, configs_of, episode, method_of, small
from metatransfer import (
    MLP,
    EpisodicModule,
    MAMLModule,
    ProtoNetModule,
    TokenAverage,
    Tokens,
    UserError,
    load_predictor,
)
from metatransfer.methods.options import InnerLoop
from processes import exit_code, print_why_it_is_not_loaded, started


def saved(predictor, tmp_path):
    return load_predictor(predictor.save(tmp_path / "predictor.safetensors"))


@pytest.mark.parametrize("path", canaries(configs_of(EpisodicModule), "protonet", "maml", "reptile"))
def test_every_method_answers_with_the_same_bits_and_can_be_extended(path, tmp_path):
    kind = method_of(path)
    module, batch = small(kind), episode(tasks=1)
    names = [("b", "a", "c")[label] for label in batch.support_y[0].tolist()]
    predictor = module.adapt(batch.support_x[0], names)
    loaded = saved(predictor, tmp_path)
    query = batch.query_x[0]
    assert torch.equal(loaded.outputs(query), predictor.outputs(query))
    assert (loaded.classes, loaded.predict(query)) == (predictor.classes, predictor.predict(query))
    assert type(loaded.module) is kind
    more = (query[:2], ["a", "b"])
    assert torch.equal(loaded.add(*more).outputs(query), predictor.add(*more).outputs(query))


def network():
    torch.manual_seed(0)
    return MLP((3,), (16,))


X = torch.rand(6, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "labels",
    [torch.tensor([4, 5, 6] * 2), np.array([4, 5, 6] * 2), np.array(["cat", "a longer name", "owl"] * 2),
     [True, False] * 3, [4, 2] * 3, ("b", "a") * 3],
    ids=["tensor", "array", "array of texts", "bool", "int", "tuple"],
)  # fmt: skip
def test_labels_come_back_as_they_were_given(labels, tmp_path):
    predictor = ProtoNetModule(network()).adapt(X, labels)
    loaded = saved(predictor, tmp_path)
    answers, expected = loaded.predict(X), predictor.predict(X)
    assert type(answers) is type(expected)
    assert np.asarray(answers).dtype == np.asarray(expected).dtype
    assert list(answers) == list(expected)


def test_double_precision_frozen_parameters_and_regression(tmp_path):
    module = MAMLModule(network(), 1, inner=InnerLoop(steps=3, lr=0.1)).double()
    module.backbone.requires_grad_(False)
    predictor = module.adapt(X, torch.arange(6.0))
    loaded = saved(predictor, tmp_path)
    assert loaded.outputs(X).dtype == predictor.outputs(X).dtype
    assert torch.equal(loaded.predict(X), predictor.predict(X))
    assert not any(value.requires_grad for value in loaded.module.backbone.parameters())
    assert torch.equal(loaded.add(X, X[:, 0]).predict(X), predictor.add(X, X[:, 0]).predict(X))


def test_texts(tmp_path):
    texts = Tokens(torch.arange(1, 13).view(4, 3), torch.ones(4, 3, dtype=torch.int64))
    predictor = ProtoNetModule(TokenAverage(20)).adapt(texts, ["a", "b"] * 2)
    assert torch.equal(saved(predictor, tmp_path).outputs(texts), predictor.outputs(texts))


class Memory(NamedTuple):
    centre: Tensor
    more: dict[str, Any]


class OwnMethod(ProtoNetModule):
    """A method of a user's, with a state of its own."""

    def fit_tasks(self, support_x, support_y):
        return Memory(
            super().fit_tasks(support_x, support_y), {"scale": 2.0, "kept": [None, support_y], "pair": (1, 2)}
        )

    def predict_tasks(self, state, query_x):
        assert state.more["pair"] == (1, 2)
        return super().predict_tasks(state.centre, query_x) * state.more["scale"]


class NamedStates(ProtoNetModule):
    """A method whose state has keys that look like paths."""

    def fit_tasks(self, support_x, support_y):
        a, b, c, d = super().fit_tasks(support_x, support_y) + torch.arange(4.0).view(4, 1, 1, 1)
        return {"a/b": a, "a": {"b": b, "~1b": c}, "a~1b": d}

    def predict_tasks(self, state, query_x):
        prototypes = state["a/b"] + 10 * state["a"]["b"] + 100 * state["a"]["~1b"] + 1000 * state["a~1b"]
        return super().predict_tasks(prototypes, query_x)


def test_keys_that_look_like_paths_stay_apart(tmp_path):
    predictor = NamedStates(network()).adapt(X, ["a", "b"] * 3)
    loaded = saved(predictor, tmp_path)
    for name in ("a/b", "a~1b"):
        assert torch.equal(loaded.state[name], predictor.state[name])
    assert torch.equal(loaded.outputs(X), predictor.outputs(X))


@pytest.mark.slow
def test_a_method_of_ones_own_from_a_module_that_is_imported(tmp_path):
    predictor = OwnMethod(network()).adapt(X, ["a", "b"] * 3)
    loaded = saved(predictor, tmp_path)
    assert torch.equal(loaded.outputs(X), predictor.outputs(X))
    assert type(loaded.state) is Memory
    file, output = str(tmp_path / "predictor.safetensors"), tmp_path / "output.txt"
    assert exit_code(started(print_why_it_is_not_loaded, file, output=output)) == 0
    assert "is not a known package" in output.read_text()


class Secret:
    def __lt__(self, other):
        return id(self) < id(other)


def test_what_is_not_plain_is_not_written(tmp_path):
    predictor = ProtoNetModule(network()).adapt(X, [Secret(), Secret()] * 3)
    with pytest.raises(UserError, match="labels must be strings or numbers") as error:
        predictor.save(tmp_path / "predictor.safetensors")
    messages.keep(str(error.value))
    assert not list(tmp_path.iterdir())


def rewritten(path, change):
    """The file with other values in its head."""
    with safe_open(path, "pt") as opened:
        head = json.loads(opened.metadata()["metatransfer"])
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    change(head, tensors)
    path.write_bytes(safetensors.torch.save(tensors, {"metatransfer": json.dumps(head)}))


@pytest.mark.parametrize("damage", ["missing", "shorter", "a bit", "another file", "format", "class"])
def test_a_file_that_cannot_be_loaded_is_one_sentence(damage, tmp_path):
    path = ProtoNetModule(network()).adapt(X, ["a", "b"] * 3).save(tmp_path / "predictor.safetensors")
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.rename(tmp_path / "predictor2.safetensors")
    elif damage == "shorter":
        path.write_bytes(content[:-5])
    elif damage == "a bit":
        content[-3] ^= 1
        path.write_bytes(content)
    elif damage == "another file":
        path.write_bytes(safetensors.torch.save({"weight": X}))
    elif damage == "format":
        rewritten(path, lambda head, tensors: head.update(format="7"))
    else:

        def change(head, tensors):
            from metatransfer.methods.saved_predictor import _checksum

            head["content"] = head["content"].replace("metatransfer.ProtoNetModule", "os.system")
            head["checksum"] = _checksum(head["content"], tensors)

        rewritten(path, change)
    with pytest.raises(UserError) as error:
        load_predictor(path)
    messages.keep(str(error.value))
