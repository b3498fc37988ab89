"""Classifiers on frozen features through the Trainer: computed once, kept in checkpoints, never trained."""

from __future__ import annotations

import copy
import csv

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from sklearn.svm import LinearSVC
from torch import nn

from metatransfer import (
    MLP,
    Arrays,
    Collection,
    Conv4,
    FrozenFeaturesModule,
    LabelledBatch,
    LabelledDataModule,
    LinearProbe,
    LinearSVM,
    NearestClassMean,
    NearestNeighbors,
    RawFeatures,
    TensorSource,
    Texts,
    TokenAverage,
    UnlabelledBatch,
    UserError,
)
from metatransfer.adapters import Labelled
from metatransfer.functional.intervals import wilson
from serving_by_names import labelled

CLASSES = 4
MAKES = {
    "mean": NearestClassMean,
    "neighbors": NearestNeighbors,
    "svm": LinearSVM,
    "probe": lambda: LinearProbe(learning_rates=3, epochs=3),
}
every = pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)


class BlobsParts(Collection):
    """Four kinds of noisy pictures."""

    moved, shift = 0, 0.0

    def parts(self):
        generator = torch.Generator().manual_seed(0)
        labels = np.arange(120) % CLASSES
        means = torch.rand(CLASSES, 1, 16, 16, generator=generator)
        x = (means[labels] + 0.1 * torch.rand(120, 1, 16, 16, generator=generator)).clamp(0, 1)
        x[self.moved] += self.shift
        return {"all": TensorSource(x, labels, [f"class {i}" for i in range(CLASSES)], "blobs")}

    def unlabelled(self, path):
        source = self.parts()["all"]
        return source, tuple(f"{i}.png" for i in range(len(source)))


def Blobs(**options):
    return labelled(BlobsParts(), **{"predict": "all"} | options)


class DividedParts(BlobsParts):
    """As above, divided already."""

    def parts(self):
        whole = super().parts()["all"]
        rows = {"train": slice(0, 80), "val": slice(80, 100), "test": slice(100, 120)}
        return {
            name: TensorSource(whole.data[part], whole.labels[part], whole.class_names, name)
            for name, part in rows.items()
        }


class MovedParts(DividedParts):
    """As above, with another training sample."""

    moved, shift = 3, 0.01


def Divided(**options):
    return labelled(DividedParts(), **{"predict": "all"} | options)


class Counting(Conv4):
    """Counts the samples that it sees."""

    _seen = 0

    def forward(self, x):
        Counting._seen += len(x)
        return super().forward(x)


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("METATRANSFER_CACHE", str(tmp_path / "cache"))
    Counting._seen = 0


def network(kind=Conv4, **arguments):
    torch.manual_seed(0)
    return kind(image_size=16, hidden_channels=4, **arguments)


def module(classifier=None, **arguments):
    return FrozenFeaturesModule(arguments.pop("backbone", None) or network(), CLASSES, classifier, **arguments)


def trainer(folder, **arguments):
    settings = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return pl.Trainer(default_root_dir=folder, **(settings | {"enable_checkpointing": False} | arguments))


def fitted(folder, method, data=None, **arguments):
    """After a fit; its Trainer and how many samples the network saw for the features."""
    Counting._seen = 0
    run = trainer(folder, **arguments)
    data = data or Blobs()
    run.fit(method, datamodule=data)
    rest = min(data.batch_size, len(data.split("train"))) + (len(data.split("val")) if run.limit_val_batches else 0)
    return run, Counting._seen - rest


def split_of(data, name):
    loader = {"train": data.train_samples, "val": data.val_dataloader, "test": data.test_dataloader}[name]()
    parts = list(loader)
    return torch.cat([part.x for part in parts]), torch.cat([part.y for part in parts])


@every
def test_it_is_the_classifier_on_the_features(make, tmp_path):
    """Against the same classifier by hand; the numbers are those of the whole split."""
    method, data = module(make()), Blobs()
    run, _ = fitted(tmp_path, method, data)
    numbers = run.test(method, datamodule=data, verbose=False)[0]
    reference = network().eval()
    with torch.no_grad():
        parts = {name: split_of(data, name) for name in ("train", "val", "test")}
        features = {name: Labelled(reference(x), y) for name, (x, y) in parts.items()}
        classifier = make().fit(features["train"], CLASSES, features["val"])
        outputs = classifier(features["test"].x)
    answers = method.evaluation.metrics["test"].answers()
    assert answers.prediction.tolist() == outputs.argmax(1).tolist()
    torch.testing.assert_close(answers.confidence, outputs.softmax(1).amax(1), rtol=1e-4, atol=1e-4)
    right = (outputs.argmax(1) == features["test"].y).double()
    assert numbers["test/accuracy"] == pytest.approx(right.mean().item())
    assert (numbers["test/accuracy_low"], numbers["test/accuracy_high"]) == pytest.approx(
        wilson(right.mean().item(), len(right)), rel=1e-5
    )
    assert numbers["test/accuracy"] > 0.5
    assert run.global_step == 1


def test_features_are_computed_once_for_all_classifiers_and_runs(tmp_path):
    backbone = network(Counting)
    counts = [fitted(tmp_path, module(make(), backbone=copy.deepcopy(backbone)))[1] for make in MAKES.values()]
    sizes = {name: len(part) for name, part in Blobs().splits.parts.items()}
    assert counts == [sizes["train"] + sizes["val"], 0, 0, 0]
    assert len(list((tmp_path / "cache" / "features").glob("*.npy"))) == 2
    own = tmp_path / "own"
    assert fitted(tmp_path, module(backbone=copy.deepcopy(backbone), cache_dir=str(own)))[1] == counts[0]
    assert len(list(own.glob("*.npy"))) == 2


def test_what_makes_other_features_makes_another_entry(tmp_path):
    """And what does not, does not: batches, augmentation, the seed of undivided data's order, the classifier's."""
    backbone = network(Counting)

    def computed(data, other=None, **arguments):
        return fitted(tmp_path, module(backbone=other or copy.deepcopy(backbone)), data, **arguments)[1]

    first = computed(Divided())
    assert first == 100
    assert computed(Divided(seed=3, batch_size=7, eval_batch_size=50, balance="oversample")) == 0
    other = copy.deepcopy(backbone)
    with torch.no_grad():
        next(other.parameters())[0] += 1e-3
    assert computed(Divided(), other) == 100
    assert computed(Divided(transform=[nn.Hardtanh(0.0, 0.5)])) == 100
    assert computed(Divided(transform=[nn.Hardtanh(0.0, 0.6)])) == 100
    assert computed(Divided(labels_per_class=5)) == 20
    assert computed(Divided(), precision="bf16-mixed") == 100
    assert computed(labelled(MovedParts(), predict="all")) == 80
    assert computed(Divided()) == 0


def test_the_network_stays_as_it_is(tmp_path):
    """PITFALLS 25: no gradient, no batch statistics, no dropout, however often train() is called."""
    method = module(LinearSVM(), backbone=network(dropout=0.5))
    state = copy.deepcopy(method.backbone.state_dict())
    method.train()
    assert not any(part.training for part in method.backbone.modules())
    assert method.training
    x = torch.rand(6, 1, 16, 16)
    run, _ = fitted(tmp_path, method)
    method.train()
    assert torch.equal(method(x), method(x))
    torch.testing.assert_close(method(x)[:1], method(x[:1]))
    for name, value in method.backbone.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert not any(value.requires_grad for value in method.parameters())
    assert run.current_epoch == 1


# ---- checkpoints


@every
def test_a_checkpoint_holds_what_was_fitted(make, tmp_path):
    saves = pl.callbacks.ModelCheckpoint(dirpath=tmp_path, monitor="val/accuracy", mode="max")
    method, data = module(make()), Blobs()
    run, _ = fitted(tmp_path, method, data, callbacks=[saves], enable_checkpointing=True)
    numbers = run.test(method, datamodule=data, verbose=False)[0]
    answers = method.evaluation.metrics["test"].answers()
    path = saves.best_model_path
    assert path

    other = module(make(), backbone=Conv4(image_size=16, hidden_channels=4))
    run = trainer(tmp_path)
    again = run.test(other, datamodule=Blobs(), ckpt_path=path, verbose=False)[0]
    assert again == numbers
    for one, two in zip(answers, other.evaluation.metrics["test"].answers(), strict=True):
        assert torch.equal(one, two)

    x = torch.rand(5, 1, 16, 16)
    loaded = FrozenFeaturesModule.load_from_checkpoint(path).eval()
    assert torch.equal(loaded(x), method.eval()(x))
    assert type(loaded.classifier) is type(method.classifier)
    assert loaded.class_names == tuple(f"class {i}" for i in range(CLASSES))

    # validated, and gone on with: nothing is left to do
    assert trainer(tmp_path).validate(loaded, Blobs(), verbose=False)[0]["val/accuracy"] == saves.best_model_score
    goes_on = module(make())
    trainer(tmp_path).fit(goes_on, datamodule=Blobs(), ckpt_path=path)
    assert torch.equal(goes_on.eval()(x), loaded(x))

    wrong = module(NearestNeighbors() if make is not NearestNeighbors else LinearSVM())
    with pytest.raises(
        UserError, match=f"the checkpoint was fitted with the classifier {type(method.classifier).__name__}, but this"
    ):
        trainer(tmp_path).test(wrong, datamodule=Blobs(), ckpt_path=path)


def test_predictions_are_those_of_the_loaded_classifier(tmp_path):
    method, data = module(NearestNeighbors(3)), Blobs()
    run, _ = fitted(tmp_path, method, data)
    run.save_checkpoint(tmp_path / "one.ckpt")
    other = module(NearestNeighbors(3))
    parts = trainer(tmp_path).predict(other, datamodule=Blobs(), ckpt_path=tmp_path / "one.ckpt")
    probabilities = torch.cat([part.probabilities for part in parts])
    x = BlobsParts().parts()["all"].data
    torch.testing.assert_close(probabilities, method.eval()(x).softmax(1))
    assert [name for part in parts for name in part.files][:2] == ["0.png", "1.png"]
    assert parts[0].classes == tuple(f"class {i}" for i in range(CLASSES))


# ---- through the Trainer


def test_a_trainer_of_any_settings_fits_it_and_is_left_as_it_was(tmp_path):
    """Its own sanity check would ask a classifier that knows nothing; some epochs would not be validated."""
    settings = {
        "num_sanity_val_steps": 2, "check_val_every_n_epoch": 5, "max_epochs": 30, "val_check_interval": 2,
        "limit_train_batches": 0.5,
    }  # fmt: skip
    method = module()
    run, _ = fitted(tmp_path, method, **settings)
    assert run.callback_metrics["val/accuracy"] > 0.5
    assert {name: getattr(run, name) for name in settings} == settings
    assert run.global_step == 1


def test_without_validation_batches_it_is_fitted_all_the_same(tmp_path):
    method = module(MAKES["probe"]())
    run, _ = fitted(tmp_path, method, limit_val_batches=0)
    assert method.classifier.found
    assert "val/accuracy" not in run.callback_metrics
    assert run.test(method, datamodule=Blobs(), verbose=False)[0]["test/samples"] == len(Blobs().split("test"))


def test_a_second_fit_in_the_same_process_is_a_fit_of_its_own(tmp_path):
    method = module()
    fitted(tmp_path, method, Blobs(labels_per_class=1))
    fitted(tmp_path, method, Blobs())
    one = module()
    fitted(tmp_path, one, Blobs())
    x = torch.rand(5, 1, 16, 16)
    assert torch.equal(method.eval()(x), one.eval()(x))


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true", "bf16-true"])
def test_other_precisions(precision, tmp_path):
    method = module(LinearSVM())
    run, _ = fitted(tmp_path, method, precision=precision)
    assert run.test(method, datamodule=Blobs(), verbose=False)[0]["test/accuracy"] > 0.5


@every
def test_margins_have_no_calibration_error(make, tmp_path):
    method = module(make())
    run, _ = fitted(tmp_path, method)
    calibrated = not isinstance(method.classifier, LinearSVM)
    logged = run.validate(method, datamodule=Blobs(), verbose=False)[0]
    logged |= run.test(method, datamodule=Blobs(), verbose=False)[0]
    assert {f"{stage}/macro_f1" for stage in ("val", "test")} <= set(logged)
    for stage in ("val", "test"):
        assert (f"{stage}/calibration_error" in logged) is calibrated
    assert ("test_calibration" in method.evaluation.figures(method, "test")) is calibrated


# ---- texts


WORDS = {"fruit": ["apple", "pear", "plum", "fig"], "metal": ["iron", "tin", "zinc", "lead"]}


@pytest.fixture
def texts(tmp_path):
    generator = np.random.default_rng(0)
    path = tmp_path / "texts.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for place in range(80):
            label = list(WORDS)[place % 2]
            words = list(generator.choice([*WORDS[label], "the", "a", "of"], generator.integers(2, 20)))
            writer.writerow([" ".join([WORDS[label][place % 4], *words]), label])
    return str(path)


class CountingTexts(TokenAverage):
    """Notes the lengths of the batches."""

    _lengths: list[int] = []  # noqa: RUF012 - of one test

    def forward(self, x):
        CountingTexts._lengths.append(x.ids.shape[1])
        return super().forward(x)


def texts_of(path, **arguments):
    own = {name: arguments.pop(name) for name in ("tokenizer", "max_length") if name in arguments}
    return LabelledDataModule(Texts(path, **own), **arguments)


def test_a_linear_svm_is_fitted_to_sparse_rows(tmp_path, monkeypatch):
    generator, y = np.random.default_rng(0), np.arange(150) % 3
    counts = generator.poisson(0.02 + 1.0 * ((np.arange(2000) % 3 == y[:, None]) & (np.arange(2000) < 30)))
    x = (counts * generator.random(2000)).astype(np.float32)
    seen = []
    fit = LinearSVM.fit
    monkeypatch.setattr(LinearSVM, "fit", lambda self, train, *rest: seen.append(train) or fit(self, train, *rest))
    data = LabelledDataModule(Arrays.from_arrays(csr_array(x), y), eval_batch_size=16)
    method = FrozenFeaturesModule(RawFeatures((2000,)), 3, LinearSVM(), str(tmp_path / "cache"))
    run = trainer(tmp_path)
    run.fit(method, datamodule=data)
    assert seen[0].x.is_sparse
    assert not (tmp_path / "cache").exists()
    rows = data.split("train").indices
    expected = LinearSVC(C=1.0, dual="auto", random_state=0).fit(csr_array(x[rows].astype(np.float64)), y[rows])
    np.testing.assert_allclose(method.classifier.learned["weight"].numpy(), expected.coef_, rtol=1e-4, atol=1e-5)
    assert run.test(method, datamodule=data, verbose=False)[0]["test/accuracy"] > 0.9
    for samples in (csr_array(x), torch.from_numpy(x).to_sparse_csr()):
        with pytest.raises(UserError, match="samples is a sparse matrix, which networks do not take: make it dense"):
            method.predict(samples)
    assert len(method.predict(x[:2])) == 2
    other = FrozenFeaturesModule(RawFeatures((2000,)), 3, NearestClassMean(), str(tmp_path / "cache"))
    trainer(tmp_path).fit(other, datamodule=data)
    assert list((tmp_path / "cache").rglob("*"))  # it takes dense features only


def test_texts(texts, tmp_path):
    def computed(seed=0, **arguments):
        data = texts_of(texts, eval_batch_size=8, **arguments)
        torch.manual_seed(0)
        backbone = CountingTexts(data.info().vocabulary_size, hidden=())
        CountingTexts._lengths.clear()
        method = FrozenFeaturesModule(backbone, 2, LinearSVM())
        run = trainer(tmp_path, limit_val_batches=0)
        run.fit(method, datamodule=data)
        return method, data, CountingTexts._lengths[:-1]

    method, data, lengths = computed()
    batches = [-(-len(data.split(split)) // 8) for split in ("train", "val")]
    assert len(lengths) == sum(batches)
    assert lengths[: batches[0]] == sorted(lengths[: batches[0]], reverse=True)
    assert lengths[0] > lengths[batches[0] - 1], "the shortest texts are not padded to the longest"
    # in whatever order they were computed, the features are those of their texts
    with torch.no_grad():
        parts = list(data.train_samples())
        reference = torch.cat([method.backbone(part.x) for part in parts])
    expected = LinearSVM().fit(Labelled(reference, torch.cat([part.y for part in parts])), 2)
    torch.testing.assert_close(method.classifier.learned["weight"], expected.learned["weight"], rtol=1e-3, atol=1e-4)
    run = trainer(tmp_path)
    assert run.test(method, datamodule=data, verbose=False)[0]["test/accuracy"] > 0.9
    assert computed()[2] == []
    # the same words cut off earlier are other samples
    assert computed(max_length=5)[2]
    assert computed(max_length=5)[2] == []
    assert method.evaluation.metrics["test"].answers().number.tolist() == list(range(len(data.split("test"))))


def test_the_key_of_texts_covers_the_tokeniser(texts):
    keys = {
        texts_of(texts, **arguments).content_key("train")
        for arguments in ({}, {"tokenizer": "cased words"}, {"max_length": 7}, {"tokenizer": None}, {"seed": 1})
    }
    assert len(keys) == 5
    assert LabelledDataModule(Texts(texts), batch_size=3).content_key("train") in keys
    moved = LabelledDataModule(Texts(texts))
    assert moved.content_key("val") != moved.content_key("train")


# ---- wrong input


class One:
    """Serves one batch."""

    def __init__(self, batch):
        self.batch = batch

    def __len__(self):
        return 1

    def __iter__(self):
        yield self.batch


class Loaders(pl.LightningDataModule):
    """Whatever batch it is given."""

    def __init__(self, batch):
        super().__init__()
        self.batch = batch

    def train_dataloader(self):
        return One(self.batch)

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


class SpoiledParts(BlobsParts):
    """A sample that is not finite, or that the network makes something else of."""

    def __init__(self, value):
        self.moved, self.shift = slice(0, 120), value


def Spoiled(value):
    return labelled(SpoiledParts(value), predict="all")


X, Y = torch.rand(6, 1, 16, 16), torch.arange(6) % CLASSES


@pytest.mark.parametrize(
    ("batch", "sentence"),
    [
        (UnlabelledBatch(X, ("a",) * 6), "learns from labelled batches of .* serves a UnlabelledBatch"),
        (X, "learns from labelled batches .* but the data module serves a Tensor"),
        (LabelledBatch(X, Y + 1), "labels from 1 to 4, but the method was built with num_classes=4 and takes 0 to 3"),
        (LabelledBatch(X, Y.double()), r"one label for each, \(N,\)|int64 labels"),
        (LabelledBatch(X, torch.eye(4)[Y]), r"one label for each, \(N,\); got"),
        (LabelledBatch(X, Y[:3]), "one label for each"),
        (LabelledBatch(X.long(), Y), "must be floating point"),
        (LabelledBatch(X * torch.nan, Y), "holds samples that are NaN or infinite: clean the data"),
        (LabelledBatch(X[:, :, :8], Y), r"built for samples of shape \(1, 16, 16\), but the data has \(1, 8, 16\)"),
    ],
    ids=["unlabelled", "alone", "labels", "floats", "mixtures", "fewer", "integers", "nan", "shape"],
)
def test_wrong_batches_are_one_sentence_in_every_stage(batch, sentence, tmp_path):
    method = module()
    fitted(tmp_path, method)
    for stage in ("validate", "test"):
        with pytest.raises(UserError, match=sentence):
            getattr(trainer(tmp_path), stage)(method, datamodule=Loaders(batch), verbose=False)


def test_wrong_data_is_one_sentence(tmp_path, texts):
    run = trainer(tmp_path)
    with pytest.raises(UserError, match="needs a data module of labelled samples"):
        run.fit(module(), datamodule=Loaders(LabelledBatch(X, Y)))
    with pytest.raises(UserError, match="built for 4 classes, but the data has 2"):
        run.fit(module(), datamodule=LabelledDataModule(Texts(texts)))
    for backbone in (Conv4(hidden_channels=4), TokenAverage(9)):
        image = isinstance(backbone, Conv4)
        data = LabelledDataModule(Texts(texts)) if image else Blobs()
        sentence = "Conv4 takes tensors, but the data module serves texts" if image else "TokenAverage reads texts as"
        with pytest.raises(UserError, match=sentence):
            trainer(tmp_path).fit(FrozenFeaturesModule(backbone, 2 if image else CLASSES), datamodule=data)
    with pytest.raises(UserError, match=r"Conv4 was built for samples of shape \(1, 28, 28\), but the data has"):
        trainer(tmp_path).fit(module(backbone=Conv4(hidden_channels=4)), datamodule=Blobs())
    with pytest.raises(UserError, match="sample 0 contains NaN or infinity: fix or remove it"):
        trainer(tmp_path).fit(module(), datamodule=Spoiled(torch.nan))
    backbone = network()
    with torch.no_grad():
        next(backbone.parameters()).fill_(torch.nan)
    with pytest.raises(UserError, match="Conv4 computes features that are NaN or infinite, first for sample 0"):
        trainer(tmp_path).fit(module(backbone=backbone), datamodule=Blobs())
    with pytest.raises(UserError, match="FrozenFeaturesModule needs num_classes"):
        FrozenFeaturesModule(network())
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"folder of cached features .* cannot be created"):
        trainer(tmp_path).fit(module(cache_dir=str(tmp_path / "file")), datamodule=Blobs())


def test_asked_before_it_was_fitted(tmp_path):
    for stage in ("validate", "test", "predict"):
        with pytest.raises(UserError, match="NearestClassMean is not fitted yet: fit it first, or give --ckpt"):
            getattr(trainer(tmp_path), stage)(module(), datamodule=Blobs())


def test_predicting_what_cannot_be_labelled(tmp_path):
    method = module()
    fitted(tmp_path, method)
    with pytest.raises(UserError, match="labels an UnlabelledBatch, but the data module serves a LabelledBatch"):
        trainer(tmp_path).predict(method, datamodule=Loaders(LabelledBatch(X, Y)))
    with pytest.raises(UserError, match="sample 0 contains NaN or infinity"):
        trainer(tmp_path).predict(method, datamodule=Spoiled(torch.nan))
    with torch.no_grad():
        next(method.backbone.parameters()).fill_(torch.nan)
    with pytest.raises(UserError, match=r"probabilities of FrozenFeaturesModule for '0.png' are NaN: check sample"):
        trainer(tmp_path).predict(method, datamodule=Blobs())


def test_several_processes_are_refused(tmp_path, monkeypatch):
    method = module()
    method._trainer = trainer(tmp_path)
    monkeypatch.setattr(pl.Trainer, "world_size", property(lambda _: 2))
    with pytest.raises(UserError, match=r"is fitted in one process: set trainer\.devices=1"):
        method.setup("fit")


def test_tables(tmp_path):
    generator = np.random.default_rng(0)
    y = np.arange(60) % 3
    x = generator.normal(size=(60, 5)) + 4 * np.eye(3, 5)[y]
    data = LabelledDataModule(Arrays.from_arrays(x.astype(np.float32), y))
    method = FrozenFeaturesModule(MLP((5,), (16,)), 3)
    run = trainer(tmp_path)
    run.fit(method, datamodule=data)
    assert run.test(method, datamodule=data, verbose=False)[0]["test/accuracy"] > 0.7
