"""Adapters of features through the Trainer: what is fitted, what is kept, and the sentence of every mistake."""

from __future__ import annotations

import copy
import csv
import json

import numpy as np
import pytest
import torch
from domain_toys import CLASSES, CloudPoints, Clouds, clouds, served, trainer
from sklearn.neighbors import KNeighborsClassifier

from conftest import best_checkpoint, results
from contract import ROOT
from metatransfer import MLP, LinearProbe, LinearSVM, NearestClassMean, NearestNeighbors, RawFeatures, UserError
from metatransfer.adapters import Labelled
from metatransfer.adapters.domain import DomainAdapter
from metatransfer.adapters.estimators import (
    CorrelationAlignment,
    GeodesicFlowKernel,
    JointDistributionAdaptation,
    SubspaceAlignment,
    TransferComponentAnalysis,
)
from metatransfer.data import DomainDataModule
from metatransfer.methods.domain.adapted_features import AdaptedFeaturesModule
from processes import exit_code, exit_with_what_is_imported, started

CONFIG = ROOT / "configs" / "adapted_features.yaml"
_FEW = {"class_path": "LabelledDataModule", "init_args": {"source": "TypesetDigits", "labels_per_class": 40}}
# without twins, which take longer than the run
ALONE = '--trainer.callbacks=[{"class_path": "AdaptationGain", "init_args": {"seeds": 0}}]'
FEW = [ALONE, f"--data.sources={json.dumps({'typeset': _FEW})}"]
ADAPTERS = {
    "none": lambda: None,
    "SA": lambda: SubspaceAlignment(2),
    "GFK": lambda: GeodesicFlowKernel(1),
    "TCA": lambda: TransferComponentAnalysis(2),
    "JDA": lambda: JointDistributionAdaptation(2, iterations=3),
    "CORAL": lambda: CorrelationAlignment(0.1),
}
every = pytest.mark.parametrize("make", ADAPTERS.values(), ids=ADAPTERS)


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("METATRANSFER_CACHE", str(tmp_path / "cache"))


def method(adapter=None, classifier=None, backbone=None, **arguments):
    return AdaptedFeaturesModule(backbone or RawFeatures([3]), CLASSES, adapter, classifier, **arguments)


def fit(module, data, **arguments):
    running = trainer(**arguments)
    running.fit(module, datamodule=data)
    return running


def arrays(loader):
    parts = list(loader)
    return [torch.cat([getattr(part, name) for part in parts]).numpy() for name in ("x", "y")]


@every
def test_it_answers_as_the_estimators_by_hand(make):
    module, data = method(make()), clouds()
    fit(module, data)
    (x, y), (target, hidden), (query, _) = (
        arrays(loader) for loader in (data.source_samples(), data.target_samples(), data.test_dataloader()[0])
    )
    assert (hidden == -1).all()
    source = x
    if (adapter := make()) is not None:
        adapter.fit(x, y, target=target)
        source, query_there = adapter.transform_source(x), adapter.transform(query)
    else:
        query_there = query
    expected = KNeighborsClassifier(1).fit(source, y).predict(query_there)
    with torch.no_grad():
        found = module(torch.from_numpy(query)).argmax(-1).numpy()
    assert np.array_equal(found, expected)
    assert len(set(expected)) == CLASSES


def test_evidence_of_the_source_is_mapped_as_the_source():
    module, data = method(SubspaceAlignment(2)), clouds()
    fit(module, data)
    x = torch.from_numpy(arrays(data.source_samples())[0])[:5]
    mapped = {side: module.encode(x, side) for side in ("source", "target")}
    adapter = module.fitted_adapter
    torch.testing.assert_close(mapped["source"].numpy(), adapter.transform_source(x.numpy()))
    torch.testing.assert_close(mapped["target"].numpy(), adapter.transform(x.numpy()))
    assert not torch.allclose(mapped["source"], mapped["target"])


def test_a_validation_logs_what_the_family_does():
    running = fit(method(SubspaceAlignment(2)), clouds())
    logged = running.callback_metrics
    names = {"val/source_accuracy", "val/selection", "val/entropy", "val/information maximization", "oracle/accuracy"}
    assert {name.replace("_", " ") for name in names} <= {name.replace("_", " ") for name in logged}
    assert running.current_epoch == 1
    assert running.global_step == 1


@pytest.mark.parametrize(("classifier", "calibrated"), [(LinearSVM(), False), (NearestClassMean(), True)])
def test_margins_have_no_calibration_error(classifier, calibrated):
    module, data = method(SubspaceAlignment(2), classifier), clouds()
    logged = fit(module, data).test(module, data, verbose=False)[0]
    assert ("test/calibration_error" in logged) is calibrated
    assert "test/accuracy" in logged


def test_the_arguments_given_are_left_as_they_are():
    adapter = SubspaceAlignment(2)
    fit(method(adapter), clouds())
    assert not hasattr(adapter, "source_map_")


@pytest.mark.grid(3)
@every
@pytest.mark.parametrize("classifier", [NearestNeighbors(1), LinearSVM(), LinearProbe(epochs=3), NearestClassMean()],
                         ids=lambda one: type(one).__name__)  # fmt: skip
def test_loaded_from_its_checkpoint_it_answers_the_same(make, classifier, tmp_path):
    module = method(make(), copy.deepcopy(classifier))
    running = fit(module, clouds())
    running.save_checkpoint(tmp_path / "it.ckpt")
    content = torch.load(tmp_path / "it.ckpt", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in content["adapter"].values())
    loaded = AdaptedFeaturesModule.load_from_checkpoint(tmp_path / "it.ckpt", map_location="cpu").eval()
    x = torch.randn(20, 3)
    with torch.no_grad():
        # a matrix in another memory order may be multiplied in another order, which changes the last digit
        for one, other in ((module.eval()(x), loaded(x)), (module.encode(x, "source"), loaded.encode(x, "source"))):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
            assert one.argmax(-1).equal(other.argmax(-1))


def test_a_checkpoint_of_another_adapter_is_refused(tmp_path):
    running = fit(method(SubspaceAlignment(2)), clouds())
    running.save_checkpoint(tmp_path / "it.ckpt")
    for other, name in ((None, "none"), (CorrelationAlignment(), "CorrelationAlignment")):
        with pytest.raises(UserError, match=f"adapter SubspaceAlignment, but this module has {name}"):
            trainer().test(method(other), clouds(), ckpt_path=tmp_path / "it.ckpt", verbose=False)
    with pytest.raises(UserError, match="classifier NearestNeighbors, but this module has LinearSVM"):
        trainer().test(method(SubspaceAlignment(2), LinearSVM()), clouds(), ckpt_path=tmp_path / "it.ckpt")


def test_labels_of_the_target_change_nothing():
    found = []
    for draw in (2, 3):  # the target's labels shuffled, its samples equal

        class ShuffledPoints(CloudPoints):
            def parts(self, draw=draw):
                part = super().parts()["all"]
                part.targets = np.random.default_rng(draw).permutation(part.targets)
                return {"all": part}

        Shuffled = served(ShuffledPoints)

        target = Shuffled(shortcut=False, draw=2, val_fraction=0.2, test_fraction=0.4)
        module = method(JointDistributionAdaptation(2))
        fit(module, clouds(targets={"astray": target}))
        found.append(module.fitted_adapter.target_map_)
    assert np.array_equal(*found)


def test_a_network_s_features_are_computed_once_and_read_again(tmp_path, monkeypatch):
    torch.manual_seed(0)
    network = MLP((3,), (8,))
    first, data = method(SubspaceAlignment(2), backbone=copy.deepcopy(network)), clouds()
    fit(first, data)
    kept = sorted((tmp_path / "cache").rglob("*.npy"))
    assert len(kept) == 3  # of the source, the target, and the source's validation
    files = [path.stat().st_ino for path in kept]  # a file that is written again is another one
    second = method(SubspaceAlignment(2), backbone=copy.deepcopy(network))
    fit(second, clouds())
    assert [path.stat().st_ino for path in sorted((tmp_path / "cache").rglob("*.npy"))] == files
    x = torch.randn(9, 3)
    assert torch.equal(first(x), second(x))
    assert not any(p.requires_grad for p in first.backbone.parameters())
    assert torch.equal(first.backbone(x), network.eval()(x))
    raw = method(SubspaceAlignment(2), cache_dir=str(tmp_path / "other"))
    fit(raw, clouds())
    assert not (tmp_path / "other").exists()


def test_its_twin_is_the_same_classifier_without_an_adapter():
    module, data = method(SubspaceAlignment(2), LinearSVM()), clouds()
    fit(module, data)
    twin = module.unadapted()
    assert twin.adapter is None
    assert not twin.classifier.learned
    fit(twin, data)
    plain = method(None, LinearSVM())
    fit(plain, data)
    x = torch.randn(30, 3)
    assert torch.equal(twin(x), plain(x))
    assert not torch.equal(twin(x), module(x))
    module.take_over(twin)
    assert torch.equal(module(x), plain(x))
    again = module.restarted(3)
    assert again.fitted_adapter is None
    with pytest.raises(UserError, match="is not fitted yet"):
        again(x)


@pytest.mark.parametrize(("given", "standardize"), [(None, False), (False, False), (True, True)])
def test_the_scale_of_adapted_features_has_a_meaning(given, standardize):
    own = LinearSVM(standardize=given)
    module, data = method(CorrelationAlignment(1.0), own), clouds()
    fit(module, data)
    assert bool((module.classifier.learned["deviation"] != 1).any()) is standardize
    assert f"C=0.01, standardize={standardize}" in module.protocol()["classifier"]
    assert module.unadapted().classifier.standardize is standardize
    assert own.standardize is given


def test_after_take_over_the_checkpoint_answers_as_the_twin(tmp_path):
    module, data = method(SubspaceAlignment(2)), clouds()
    running = fit(module, data)
    twin = module.unadapted()
    fit(twin, data)
    module.take_over(twin)
    running.save_checkpoint(tmp_path / "it.ckpt")
    loaded = AdaptedFeaturesModule.load_from_checkpoint(tmp_path / "it.ckpt", map_location="cpu")
    x = torch.randn(30, 3)
    assert torch.equal(loaded(x), twin(x))


class ConstantPoints(CloudPoints):
    """A feature that never changes."""

    def parts(self):
        found = super().parts()
        found["all"].data[:, 2] = 1.0
        return found


Constant = served(ConstantPoints)


class WidePoints(CloudPoints):
    """Other features."""

    def parts(self):
        found = super().parts()
        found["all"].data = torch.cat([found["all"].data] * 2, 1)
        return found


Wide = served(WidePoints)


class HolesPoints(CloudPoints):
    """A number that is none."""

    def parts(self):
        found = super().parts()
        found["all"].data[7, 1] = torch.nan
        return found


Holes = served(HolesPoints)


WRONG = [
    (SubspaceAlignment(0), {}, "n_components must be 1 or more, but is 0"),
    (TransferComponentAnalysis(2, regularization=0.0), {}, "regularization must be above 0"),
    (JointDistributionAdaptation(2, iterations=0), {}, "iterations must be 1 or more"),
    (CorrelationAlignment(0.0), {"sources": {"flat": Constant()}}, "covariance is singular"),
    (SubspaceAlignment(2), {"targets": {"wide": Wide()}}, "samples of the same shape"),
    (SubspaceAlignment(2), {"targets": {"holes": Holes()}}, "NaN"),
    (SubspaceAlignment(2), {"sources": {"holes": Holes()}}, "NaN"),
]


@pytest.mark.parametrize(("adapter", "data", "words"), WRONG, ids=[words for *_, words in WRONG])
def test_wrong_input_is_one_sentence(adapter, data, words):
    with pytest.raises(UserError, match=words) as found:
        fit(method(adapter), clouds(**data))
    assert "\n" not in str(found.value)


def test_more_components_than_features_are_as_many_as_there_are():
    module = method(SubspaceAlignment(50))
    fit(module, clouds())
    assert module.fitted_adapter.target_map_.shape == (3, 3)


def test_raw_features_ask_for_their_shape():
    with pytest.raises(UserError, match="needs in_shape"):
        RawFeatures()
    with pytest.raises(UserError, match="in_shape must be a number above 0"):
        RawFeatures([3, 0])
    network = RawFeatures([1, 4, 4])
    assert network.out_features == 16
    x = torch.rand(2, 1, 4, 4)
    assert torch.equal(network(x), x.flatten(1))
    with pytest.raises(UserError, match="was built for samples of shape"):
        fit(method(backbone=RawFeatures([4])), clouds())


def test_the_nearest_by_euclidean_distance():
    generator = torch.Generator().manual_seed(0)
    x, q = torch.randn(40, 5, generator=generator).double(), torch.randn(60, 5, generator=generator).double()
    y = torch.arange(40) % 4
    for k in (1, 5):
        reference = KNeighborsClassifier(k, weights=lambda distances: np.exp(-(distances**2) / 2.0)).fit(x, y)
        found = NearestNeighbors(k, 2.0, "euclidean").fit(Labelled(x, y), 4)
        expected = torch.from_numpy(reference.predict_proba(q))
        torch.testing.assert_close(found(q).softmax(-1), expected, rtol=1e-9, atol=1e-9)
    with pytest.raises(UserError, match="distance"):
        NearestNeighbors(1, distance="manhattan")


@pytest.mark.slow
def test_the_command_starts_without_scikit_learn():
    assert exit_code(started(exit_with_what_is_imported, "sklearn")) == 0


class Identity(DomainAdapter):
    """An adapter of a user's own."""

    def __init__(self, scale=1.0):
        self.scale = scale

    def find_maps(self, source, y, target):
        return self.scale * np.eye(source.shape[1]), self.scale * np.eye(source.shape[1])


@pytest.mark.parametrize(
    "name",
    [
        "GeodesicFlowKernel",
        pytest.param("Identity", marks=pytest.mark.slow),
        pytest.param("null", marks=pytest.mark.slow),
    ],
)
def test_adapters_by_their_names(cli, name):
    short = [*FEW, "--model.adapter", name]
    if name == "GeodesicFlowKernel":
        short += ["--model.adapter.n_components=5"]
    run = cli("fit", CONFIG, *short, small=False)
    told = results(run)["protocol"]["method"]["adapter"]
    expected = {"GeodesicFlowKernel": "GeodesicFlowKernel(n_components=5)", "Identity": "Identity(scale=1.0)"}
    assert told == expected.get(name, "none")
    measured = results(cli("test", run / "config.yaml", "--ckpt_path", best_checkpoint(run), small=False))
    assert measured["protocol_differences"] == []
    assert measured["metrics"]["accuracy"]["value"] > 0.4


@pytest.mark.slow
def test_pictures_are_labelled(cli, runs, tmp_path):
    from PIL import Image

    run = runs("fit", CONFIG, *FEW, small=False)
    query = tmp_path / "query"
    query.mkdir()
    for number in range(3):
        Image.fromarray(np.full((28, 28), 40 * number, np.uint8)).save(query / f"{number}.png")
    photos = {"class_path": "ImageFolder", "init_args": {"root": str(query), "image_size": 28, "channels": 1}}
    targets = json.dumps(
        {"photos": {"class_path": "LabelledDataModule", "init_args": {"source": photos, "predict": str(query)}}}
    )
    arguments = ["--ckpt_path", best_checkpoint(run), f"--data.targets={targets}"]
    found = cli("predict", run / "config.yaml", *arguments, small=False)
    rows = list(csv.DictReader((found / "predictions.csv").open()))
    assert len(rows) == 3
    assert {row["label"] for row in rows} <= set("0123456789")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model.adapter=SubspaceAlignmnt"], "Did you mean SubspaceAlignment?"),
        (["--model.adapter.n_component=3"], "has no argument 'n_component'"),
        (["--model.adapter.n_components=many"], "n_components must be an integer"),
        (["--model.adapter.n_components=0"], "n_components must be 1 or more"),
        (["--data=LabelledDataModule", "--data.source=Digits"], "adapts to a target domain"),
    ],
    ids=lambda one: one[0] if isinstance(one, list) else "",
)
def test_a_wrong_command_is_one_sentence(cli, capsys, arguments, sentence):
    with pytest.raises(SystemExit) as stop:
        cli("fit", CONFIG, "--trainer.callbacks=null", *arguments, small=False)
    assert stop.value.code == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: ")
    assert sentence in message


def test_several_targets_are_adapted_to_at_once():
    targets = {
        name: Clouds(shortcut=False, draw=draw, val_fraction=0.2, test_fraction=0.4)
        for name, draw in (("one", 2), ("two", 5))
    }
    data = clouds(targets=targets)
    assert isinstance(data, DomainDataModule)
    module = method(CorrelationAlignment())
    running = fit(module, data)
    logged = running.test(module, data, verbose=False)
    assert {"test/one/accuracy", "test/two/accuracy"} <= set().union(*logged)
