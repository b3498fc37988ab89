"""Exported files answer as the method does, in a process that does not know the package."""

from __future__ import annotations

import functools
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

import messages
from contract import WAYS, canaries, configs_of, episode, method_of, small
from metatransfer import (
    MLP,
    Backbone,
    EpisodicModule,
    FineTuneModule,
    FrozenFeaturesModule,
    LinearProbe,
    MAMLModule,
    MethodModule,
    NearestClassMean,
    NearestNeighbors,
    ProtoNetModule,
    ResNet12,
    TokenAverage,
    Tokens,
    TorchvisionBackbone,
    UserError,
    export_module,
)
from metatransfer.adapters import Labelled
from metatransfer.methods.exported_file import CAN_EXPORT
from metatransfer.methods.options import InnerLoop

pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.skipif(not CAN_EXPORT, reason="needs a newer torch")

OUTSIDE = """
import json, sys
import numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
for given, found in zip(sys.argv[2::2], sys.argv[3::2]):
    numpy.save(found, session.run(None, dict(numpy.load(given)))[0])
assert not {"metatransfer", "torch"} & set(sys.modules)
print(json.dumps(session.get_modelmeta().custom_metadata_map))
"""

TORCH_ALONE = """
import sys
import torch
notes = {"metatransfer.json": ""}
program = torch.export.load(sys.argv[1], extra_files=notes).module()
torch.save((program(torch.load(sys.argv[2])), notes["metatransfer.json"]), sys.argv[3])
assert "metatransfer" not in sys.modules
"""


def alone(code, path, *files):
    """What a process prints that runs the code, in the folder of a file and away from the package's sources."""
    command = [sys.executable, "-c", code, path, *files]
    done = subprocess.run(command, capture_output=True, text=True, cwd=path.parent, env={"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return done.stdout


def outside(path, **inputs):
    """Answers and metadata from another process with onnxruntime alone."""
    (found,), notes = each_outside(path, [inputs])
    return found, notes


def each_outside(path, cases):
    """Answers to each of many inputs, and metadata, from one process."""
    given = [path.with_suffix(f".{number}.npz") for number in range(len(cases))]
    found = [file.with_suffix(".npy") for file in given]
    for file, inputs in zip(given, cases, strict=True):
        np.savez(file, **{name: value.numpy() for name, value in inputs.items()})
    notes = json.loads(alone(OUTSIDE, path, *(file for pair in zip(given, found, strict=True) for file in pair)))
    return [torch.from_numpy(np.load(file)) for file in found], notes


def same(found, expected):
    torch.testing.assert_close(found, expected.float(), rtol=0, atol=1e-5)


def fitted(module):
    """A method with something that is fitted, fitted to random features."""
    features = torch.rand(6 * WAYS, module.backbone.out_features, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(6 * WAYS) % WAYS
    module.classifier.fit(Labelled(features, labels), WAYS, Labelled(features, labels))
    return module


@pytest.mark.parametrize("path", canaries(configs_of(MethodModule), "protonet", "dann"))
def test_every_method_answers_outside_as_inside(path, tmp_path):
    """Point 9 of the contract: the predictor of a few-shot method, or the classifier."""
    kind = method_of(path)
    module, batch = small(kind), episode(tasks=1, queries=7)
    query, file = batch.query_x[0], tmp_path / "model.onnx"
    if issubclass(kind, EpisodicModule):
        predictor = module.adapt(batch.support_x[0], [("owl", "cat", "dog")[label] for label in batch.support_y[0]])
        done = predictor.export(file)
        found, notes = outside(file, query_x=query)
        assert json.loads(notes["classes"]) == ["cat", "dog", "owl"]
        same(found, predictor.predict_proba(query))
    elif module.cannot_export:
        with pytest.raises(UserError, match="cannot be exported, because"):
            export_module(module, file)
        return
    else:
        module = fitted(module) if isinstance(module, FrozenFeaturesModule) else module
        done = export_module(module, file)
        same(outside(file, x=query)[0], module.predictions(query).probabilities)
    assert done.difference <= done.tolerance == 1e-5
    assert done.size == file.stat().st_size


@pytest.mark.parametrize("path", canaries(configs_of(EpisodicModule), "protonet", "maml"))
def test_a_few_shot_method_as_a_function_of_any_support_set_or_a_sentence_why_not(path, tmp_path):
    kind = method_of(path)
    module, file = small(kind), tmp_path / "method.onnx"
    if module.cannot_export:
        with pytest.raises(UserError, match="adapt it, and export the predictor") as error:
            export_module(module, file)
        messages.keep(str(error.value))
        assert not list(tmp_path.iterdir())
        return
    export_module(module, file)
    cases = []
    for shots, queries, classes in ((2, 3, 3), (1, 1, 5)):
        x = torch.rand(classes * shots + queries, 1, 28, 28, generator=torch.Generator().manual_seed(shots))
        support, labels = x[: classes * shots], torch.arange(classes).repeat(shots)
        cases.append({"support_x": support, "support_y": labels, "query_x": x[classes * shots :]})
    for case, found in zip(cases, each_outside(file, cases)[0], strict=True):
        same(found, module.adapt(case["support_x"], case["support_y"]).predict_proba(case["query_x"]))


@pytest.mark.slow
def test_pt2_files_are_run_by_torch_alone(tmp_path):
    batch = episode(tasks=1)
    predictor = small(ProtoNetModule).adapt(batch.support_x[0], list("abc") * 2)
    done = predictor.export(tmp_path / "model.pt2")
    query, given, answers = batch.query_x[0][:5], tmp_path / "query.pt", tmp_path / "answers.pt"
    torch.save(query, given)
    alone(TORCH_ALONE, done.path, given, answers)
    found, notes = torch.load(answers)
    assert torch.equal(found, predictor.predict_proba(query))
    assert json.loads(json.loads(notes)["classes"]) == ["a", "b", "c"]
    assert f"{done.path}: query_x -> probabilities; differs from the method by 0.0e+00 at most" in str(done)


@pytest.mark.slow  # its canary: test_every_method_answers_outside_as_inside[dann]
def test_a_network_with_its_own_size_and_normalisation(tmp_path):
    """Preprocessing is inside: images of any kind go in as the data serves them."""
    torch.manual_seed(0)
    network = TorchvisionBackbone("resnet18", in_channels=1, image_size=20, resize=40, mean=[0.4], std=[0.3])
    module = FineTuneModule(network, 3).eval()
    module.class_names = ("a", "b", "c")
    done = export_module(module, tmp_path / "resnet.onnx")
    x = torch.rand(5, 1, 20, 20)
    found, notes = outside(done.path, x=x)
    same(found, module.predictions(x).probabilities)
    assert json.loads(notes["classes"]) == ["a", "b", "c"] == list(done.classes)
    inside = json.loads(notes["preprocessing_inside"])
    assert inside["resize"] == 40
    assert inside["mean"] == pytest.approx([0.4] * 3)


def texts(count, length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(length) < torch.randint(2, length + 1, (count, 1), generator=generator)).long()
    return Tokens(torch.randint(1, 30, (count, length), generator=generator) * mask, mask)


def tiny_encoder():
    pytest.importorskip("transformers")
    from metatransfer import HuggingFaceEncoder

    config = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
              "intermediate_size": 24, "vocab_size": 40, "max_position_embeddings": 32}  # fmt: skip
    return HuggingFaceEncoder("tiny", weights=None, normalize=True, config=config)


@pytest.mark.parametrize("network", ["average", pytest.param("encoder", marks=pytest.mark.slow)])
def test_text_classifiers_take_tokens_of_any_length(network, tmp_path):
    torch.manual_seed(0)
    module = FineTuneModule(TokenAverage(40) if network == "average" else tiny_encoder(), 3).eval()
    done = export_module(module, tmp_path / "texts.onnx", texts(4, 7) if network == "encoder" else None)
    given = [texts(count, length, seed=length) for count, length in ((1, 3), (6, 11))]
    answers, _ = each_outside(done.path, [{"x_ids": x.ids, "x_mask": x.mask} for x in given])
    for x, found in zip(given, answers, strict=True):
        with torch.no_grad():
            same(found, module(x).softmax(-1))


@pytest.mark.parametrize(
    "classifier",
    [
        NearestClassMean(),
        *(pytest.param(one, marks=pytest.mark.slow) for one in (NearestNeighbors(k=3), LinearProbe())),
    ],
    ids=lambda one: type(one).__name__,
)
def test_classifiers_of_frozen_features(classifier, tmp_path):
    module = fitted(FrozenFeaturesModule(MLP((3,), (16,)), WAYS, classifier)).eval()
    x = torch.rand(5, 3)
    done = export_module(module, tmp_path / "model.onnx", x)
    same(outside(done.path, x=x)[0], module.predictions(x).probabilities)


@pytest.mark.parametrize("threads", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_regression_and_networks_that_are_mapped_over_tasks(tmp_path, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x = torch.rand(8, 3)
        predictor = MAMLModule(MLP((3,), (16,)), 1, inner=InnerLoop(steps=2, lr=0.1)).adapt(x, x.sum(1))
        done = predictor.export(tmp_path / "values.onnx")
        assert (done.output, done.classes) == ("values", ())
        same(outside(done.path, query_x=x)[0], predictor.predict(x))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("mistake", ["ending", "shape", "tolerance", "package", "nan"])
def test_what_cannot_be_exported_is_one_sentence(mistake, tmp_path, monkeypatch):
    x = torch.rand(6, 3)
    predictor = ProtoNetModule(MLP((3,), (16,))).adapt(x, ["a", "b"] * 3)
    if mistake == "package":
        monkeypatch.setitem(sys.modules, "onnxscript", None)
    call = functools.partial(predictor.export, tmp_path / ("model.h5" if mistake == "ending" else "model.onnx"))
    if mistake == "tolerance":
        call = functools.partial(call, tolerance=-1)
    if mistake == "nan":
        broken = FineTuneModule(MLP((3,), (4,)), 3)
        torch.nn.init.constant_(broken.head.linear.bias, torch.nan)
        call = functools.partial(export_module, broken, tmp_path / "model.onnx", x)
    if mistake == "shape":
        call = functools.partial(
            export_module, FineTuneModule(ResNet12(widths=(4, 4, 4, 4)), 3), tmp_path / "model.onnx"
        )
    with pytest.raises(UserError) as error:
        call()
    messages.keep(str(error.value))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_a_file_that_answers_nan_is_no_equal_of_the_method(wrong, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "metatransfer.methods.exported_file.run_onnx", lambda path: lambda x: torch.full((len(x), 3), wrong)
    )
    module = FineTuneModule(MLP((3,), (4,)), 3)
    with pytest.raises(UserError, match="differ by up to"):
        export_module(module, tmp_path / "model.onnx", torch.rand(4, 3))
    assert not list(tmp_path.iterdir())


def test_samples_are_taken_as_adapt_takes_them_and_checked(tmp_path):
    module = FineTuneModule(MLP((3,), (4,)), 3)
    x = np.random.default_rng(0).random((4, 3))  # an array, in double precision
    assert export_module(module, tmp_path / "model.pt2", x).difference < 1e-5
    for wrong in (torch.rand(4, 5), torch.rand(4, 3, 3), np.full((4, 3), np.nan), "texts"):
        with pytest.raises(UserError, match=r"^[^\n]+$"):
            export_module(module, tmp_path / "wrong.onnx", wrong)
    assert not (tmp_path / "wrong.onnx").exists()


class _Statistics(Backbone):
    """Answers two samples or more, as BatchNorm with the statistics of the batch does."""

    out_features, in_shape = 3, (3,)

    def forward(self, x):
        if not torch.compiler.is_compiling() and len(x) < 2:
            raise UserError("one sample has no statistics.")
        return x


def test_a_method_without_an_answer_to_one_sample_has_no_time_for_it(tmp_path):
    done = export_module(FineTuneModule(_Statistics(), 3), tmp_path / "model.pt2", torch.rand(4, 3))
    assert done.difference < 1e-5
    assert math.isnan(done.milliseconds)
