"""Source and target domains: what is served, to whom labels are shown, and what is refused."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule
from PIL import Image
from torchvision.transforms import v2

from metatransfer import (
    Arrays,
    Digits,
    DomainDataModule,
    ImageFolder,
    LabelledDataModule,
    RandomAffine,
    RowSum,
    Texts,
)
from metatransfer.batches import DomainBatch, DomainSamples
from metatransfer.data.serving.domain_opening import without_test
from metatransfer.errors import UserError
from serving_by_names import domains_of, labelled

NAMES = np.array(["cat", "cow", "dog"])


def features(start, count, size=4):
    """Vectors whose first value says which sample it is; the others differ."""
    x = np.random.default_rng(start).normal(start, 2, (count, size)).astype(np.float32)
    x[:, 0] = start + np.arange(count)
    return x


def array(start, count=30, labels=True, **options):
    y = NAMES[np.arange(count) % 3] if labels is True else labels
    return labelled(Arrays.from_arrays(features(start, count), y), **options)


def domains(sources=None, targets=None, **options):
    sources = sources if sources is not None else {"a": array(1000)}
    targets = targets if targets is not None else {"t": array(3000, 60)}
    return domains_of(sources, targets, **{"batch_size": 6, **options})


def trainer(epoch=0, batch=0, rank=0, world=1):
    progress = SimpleNamespace(batch_progress=SimpleNamespace(current=SimpleNamespace(ready=batch)))
    return SimpleNamespace(
        global_rank=rank, world_size=world, current_epoch=epoch, overfit_batches=0,
        fit_loop=SimpleNamespace(epoch_loop=progress), strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )  # fmt: skip


def whole(loader):
    return DomainSamples(*(torch.cat(parts) for parts in zip(*loader, strict=True)))


def ids(samples):
    return samples.x[:, 0].int().tolist()


# ---- what is served


def test_what_is_served():
    data = domains()
    data.setup("fit")
    info = data.info()
    assert (info.batch, info.target_names, info.test_names) == (DomainBatch, ("t",), ())
    assert (info.class_names, info.sample_shape, info.oracle) == (("cat", "cow", "dog"), (4,), "report")
    assert info.class_counts == (7, 7, 7)
    batches = list(data.train_dataloader())
    assert len(batches) == len(data.train_dataloader()) == 42 // 6
    assert all(isinstance(batch, DomainBatch) for batch in batches)
    for batch in batches:
        of_source = batch.source_x[:, 0].long() - 1000
        assert batch.source_y.tolist() == (of_source % 3).tolist()
        assert batch.source_y.dtype == batch.target_number.dtype == torch.int64
        assert len(batch.target_x) == 6
        assert not batch.source_domain.any()
        assert not batch.target_domain.any()
    # every target sample once, every source sample twice, and a number always means the same sample
    target = torch.cat([batch.target_x[:, 0] for batch in batches]).int().tolist()
    assert len(set(target)) == len(target) == 42
    assert np.bincount(torch.cat([batch.source_number for batch in batches])).tolist() == [2] * 21
    known = torch.tensor(ids(whole(data.target_samples())))
    for batch in batches:
        assert torch.equal(known[batch.target_number], batch.target_x[:, 0].int())


def test_evaluation():
    data = domains(targets={"t": array(3000, 60), "u": array(4000, 30)}, eval_batch_size=7)
    data.setup("fit")
    source, target = (whole(loader) for loader in data.val_dataloader())
    assert source.y.tolist() == [(one - 1000) % 3 for one in ids(source)]
    assert target.y.tolist() == [-1] * 9
    assert target.number.tolist() == list(range(9))
    assert target.domain.tolist() == [0] * 6 + [1] * 3
    assert data.oracle_labels("val").tolist() == [one % 1000 % 3 for one in ids(target)]
    data.setup("test")
    assert data.info().test_names == ("t", "u")
    first, second = (whole(loader) for loader in data.test_dataloader())
    assert first.number.tolist() == list(range(12))
    assert second.number.tolist() == list(range(12, 18))
    assert set(second.domain.tolist()) == {1}
    both = torch.cat([first.y, second.y])
    assert both.tolist() == [one % 1000 % 3 for one in ids(first) + ids(second)]
    assert torch.equal(data.oracle_labels("test")[torch.cat([first.number, second.number])], both)
    everything = whole(data.source_samples())
    assert everything.number.tolist() == list(range(21))
    assert everything.y.tolist() == [(one - 1000) % 3 for one in ids(everything)]
    train = whole(data.target_samples())
    assert train.y.tolist() == [-1] * 63
    assert data.oracle_labels("train").tolist() == [one % 1000 % 3 for one in ids(train)]
    assert data.show("test", 12).startswith(str(ids(second)[0]))
    # no sample is in two splits
    assert not set(ids(train)) & set(ids(target))
    assert len(set(ids(train) + ids(target) + ids(first) + ids(second))) == 90


def test_several_sources_share_a_batch():
    sources = {"a": array(1000, 60), "b": array(5000, 30, NAMES[[2, 1, 0] * 10]), "c": array(6000, 9)}
    data = domains(sources, batch_size=8, target_batch_size=3)
    batches = list(data.train_dataloader())
    assert len(batches) == 42 // 3
    shares = np.array([batch.source_domain.bincount(minlength=3).tolist() for batch in batches])
    assert set(shares.flatten()) == {2, 3}
    assert (shares.sum(1) == 8).all()
    assert np.ptp(shares.sum(0)) <= 1
    starts = {0: 0, 1: 42, 2: 63}
    known = torch.tensor(ids(whole(data.source_samples())))
    assert [22, 22, 22] == list(data.info().class_counts) == np.bincount(whole(data.source_samples()).y).tolist()
    for batch in batches:
        one, domain = batch.source_x[:, 0].int(), batch.source_domain
        assert torch.equal(known[batch.source_number], one)
        assert all(number >= starts[place] for number, place in zip(batch.source_number, domain.tolist(), strict=True))
        # classes are numbered as in the first source, whatever their order in the others
        expected = torch.where(domain == 1, 2 - one % 5000 % 3, one % 1000 % 3)
        assert torch.equal(batch.source_y, expected.long())


def test_every_domain_keeps_what_is_its_own():
    few = array(1000, labels_per_class=2, transform=[v2.Lambda(lambda x: x + 0.25)], seed=5)
    data = domains({"a": few, "b": array(5000, 30, NAMES[[0] * 20 + [1] * 5 + [2] * 5], balance="oversample")})
    assert list(data.info().class_counts) == [2 + 14, 2 + 3, 2 + 3]
    batches = list(data.train_dataloader())
    a, b = (torch.cat([batch.source_x[batch.source_domain == place] for batch in batches]) for place in (0, 1))
    assert set((a[:, 0] % 1).tolist()) == {0.25}
    assert set((b[:, 0] % 1).tolist()) == {0.0}
    y = torch.cat([batch.source_y[batch.source_domain == 1] for batch in batches])[:20]
    assert sorted(y.bincount().tolist()) == [6, 7, 7]
    alone = array(1000, labels_per_class=2, seed=5)
    assert sorted(set(a[:, 0].int().tolist())) == [1000 + one for one in alone.split("train").indices.tolist()]


def test_evaluation_is_not_balanced():
    """A balanced pass over classes of 24, 3 and 3 samples would repeat those of the small classes."""
    y = NAMES[np.repeat([0, 1, 2], [24, 3, 3])]
    data = domains({"a": array(0, 30, y, balance="oversample", val_fraction=0.3, test_fraction=0.3)})
    data.setup("fit")
    domain = data._side("sources").domains[0]
    for loader, split in ((data.source_samples(), "train"), (data.val_dataloader()[0], "val")):
        found = list(loader)
        assert torch.cat([batch.number for batch in found]).tolist() == list(range(len(domain.splits[split])))
        assert torch.cat([batch.y for batch in found]).tolist() == domain.labels[split].tolist()


def test_augmentation_is_of_the_training_and_of_its_domain():
    def images(**options):
        x = np.random.default_rng(0).random((30, 1, 8, 8)).astype(np.float32)
        return labelled(Arrays.from_arrays(x, NAMES[np.arange(30) % 3]), **options)

    data = domains({"a": images(augmentation=RandomAffine())}, {"t": images()})
    batch = next(iter(data.train_dataloader()))
    samples = whole(data.source_samples())
    assert not torch.equal(batch.source_x, samples.x[batch.source_number])
    assert torch.equal(batch.target_x, whole(data.target_samples()).x[batch.target_number])
    assert torch.equal(next(iter(data.train_dataloader())).source_x, batch.source_x)
    assert data.show("val", 0).shape == (1, 8, 8)


def test_seeds():
    def first(data):
        return next(iter(data.train_dataloader())).target_x[:, 0].int().tolist()

    assert first(domains()) == first(domains())
    assert first(domains(seed=1)) == first(domains().reseeded(1)) != first(domains())
    assert first(domains(targets={"t": array(3000, 60, seed=1)})) == first(domains(seed=1))
    data = domains()
    split = set(ids(whole(data.source_samples())))
    assert split != set(ids(whole(data.reseeded(1).source_samples())))
    assert split == set(ids(whole(data.source_samples())))


# ---- transductive, oracle


def test_transductive():
    data = domains(transductive=True)
    data.setup("fit")
    assert sum(data.info().class_counts) == 27
    target = [3000 + number for number in range(60)]
    loaders = (data.target_samples(), data.val_dataloader()[1], data.test_dataloader()[0])
    assert [ids(whole(loader)) for loader in loaders] == [target] * 3
    assert whole(data.target_samples()).y.tolist() == whole(data.val_dataloader()[1]).y.tolist() == [-1] * 60
    assert whole(data.test_dataloader()[0]).y.tolist() == [0, 1, 2] * 20
    source = ids(whole(data.source_samples())) + ids(whole(data.val_dataloader()[0]))
    assert sorted(source) == [1000 + number for number in range(30)]
    card = data.protocol()
    assert card["protocol"] == "transductive"
    assert card["targets"]["t"]["split"] == "all samples in every split"
    assert domains().protocol()["targets"]["t"]["split"] == "by sample at random, seed 0"


def test_transductive_of_what_comes_divided(tmp_path):
    path, x, y = str(tmp_path / "a.npz"), features(0, 30), np.arange(30) % 3
    np.savez(path, x_train=x[:12], y_train=y[:12], x_val=x[12:18], y_val=y[12:18], x_test=x[18:], y_test=y[18:])
    divided = {"a": Arrays(path)}, {"t": Arrays(path)}
    data = domains(*divided, transductive=True)
    assert ids(whole(data.source_samples())) == [*range(12), *range(18, 30)]
    assert ids(whole(data.val_dataloader()[0])) == list(range(12, 18))
    assert ids(whole(data.target_samples())) == list(range(30))
    assert whole(data.test_dataloader()[0]).y.tolist() == [0, 1, 2] * 10
    data = domains(*divided)
    assert ids(whole(data.target_samples())) == list(range(12))
    assert ids(whole(data.test_dataloader()[0])) == list(range(18, 30))
    assert data.protocol()["targets"]["t"]["split"] == "as given"


def test_the_oracle_twin():
    data = domains(targets={"t": array(3000, 60), "u": array(4000, 30)}, standardize="none")
    twin = data.oracle_twin()
    assert (twin.info().target_names, twin.info().class_names) == (("t", "u"), data.info().class_names)
    truth = whole(twin.source_samples())
    assert torch.equal(truth.x, whole(data.target_samples()).x)
    assert torch.equal(truth.y, data.oracle_labels("train"))
    assert list(twin.info().class_counts) == truth.y.bincount().tolist()
    assert torch.equal(whole(twin.val_dataloader()[0]).y, data.oracle_labels("val"))
    assert torch.equal(whole(twin.test_dataloader()[1]).x, whole(data.test_dataloader()[1]).x)
    for batch in twin.train_dataloader():
        assert torch.equal(batch.source_y, batch.source_x[:, 0].long() % 1000 % 3)
    again = twin.reseeded(1)
    assert set(ids(whole(again.source_samples()))) == set(ids(whole(data.reseeded(1).target_samples())))
    assert again.protocol()["trained_on"] == "labels of the targets"
    assert data.protocol()["trained_on"] == "labels of the sources"
    with pytest.raises(UserError, match="oracle is 'none'"):
        domains(oracle="none").oracle_twin()


def test_targets_without_labels():
    data = domains(targets={"t": array(3000, 60, None), "u": array(4000)})
    data.setup("fit")
    assert len(list(data.train_dataloader())) == (42 + 21) // 6
    assert data.oracle_labels("val").tolist()[:6] == [-1] * 6
    data = domains(targets={"t": array(3000, 60, None)})
    data.setup("fit")
    assert data.oracle_labels("val") is None
    assert data.protocol()["targets"]["t"]["labels_known"] == {"train": 0, "val": 0, "test": 0}
    with pytest.raises(UserError, match=r"target 't' has 12 test samples without labels.*predict"):
        data.setup("test")
    with pytest.raises(UserError, match="target 't' has 42 train samples without labels"):
        data.oracle_twin()
    assert domains(oracle="none").oracle_labels("test") is None


def test_what_labels_are_for_is_said_once(caplog):
    data = domains()
    with caplog.at_level("INFO"):
        data.setup("fit")
        data.setup("fit")
    assert caplog.text.count("The labels of 't' are removed from training and validation") == 1
    caplog.clear()
    with caplog.at_level("INFO"):
        domains(targets={"t": array(3000, 60, None)}).setup("fit")
    assert "labels" not in caplog.text


# ---- predict, standardize


def test_predict(tmp_path):
    np.save(tmp_path / "x.npy", features(0, 9))
    asked = str(tmp_path / "x.npy")
    data = domains(targets={"t": array(3000, 60, None, predict=asked, transform=[v2.Lambda(lambda x: 2 * x)])})
    data.setup("predict")
    batches = list(data.predict_dataloader())
    assert [len(batch.files) for batch in batches] == [6, 3]
    assert torch.cat([batch.x for batch in batches])[:, 0].tolist() == [2.0 * number for number in range(9)]


def test_standardize():
    kind = {"transform": [RowSum()]}
    counts = np.random.default_rng(0).integers(0, 9, (60, 5)).astype(np.uint8)
    counts[:, 4] = 0
    given = [labelled(Arrays.from_arrays(counts[rows], NAMES[np.arange(30) % 3]), **kind) for rows in np.split(
        np.arange(60), 2)]  # fmt: skip
    data = domains({"a": given[0]}, {"t": given[1]}, standardize="domain", transductive=True)
    with pytest.warns(UserWarning, match="1 of 5 features of source 'a' are constant") as warned:
        data.setup("fit")
    assert len([one for one in warned if "features of" in str(one.message)]) == 2
    target = counts[30:].astype(np.float64)
    target /= target.sum(1, keepdims=True)
    expected = (target - target.mean(0)) / np.where(target.std(0) == 0, 1, target.std(0))
    np.testing.assert_allclose(whole(data.test_dataloader()[0]).x.numpy(), expected, atol=1e-5)
    data = domains({"a": given[0]}, {"t": given[1]}, standardize="source", transductive=True)
    with pytest.warns(UserWarning, match="of the sources"):
        data.setup("fit")
    kept = without_test(given[0]).split("train").indices
    source = counts[:30].astype(np.float64)[kept]
    source /= source.sum(1, keepdims=True)
    scale = np.where(source.std(0) == 0, 1, source.std(0))
    np.testing.assert_allclose(
        whole(data.test_dataloader()[0]).x.numpy(), (target - source.mean(0)) / scale, atol=1e-5
    )  # fmt: skip
    np.testing.assert_allclose(whole(data.source_samples()).x.numpy(), (source - source.mean(0)) / scale, atol=1e-5)
    batch = next(iter(data.train_dataloader()))
    assert torch.equal(batch.target_x, whole(data.target_samples()).x[batch.target_number])


# ---- refusals


def texts(folder):
    path = folder / "texts.csv"
    path.write_text("text,label\n" + "".join(f"word {i},{NAMES[i % 3]}\n" for i in range(30)))
    return Texts(str(path))


BAD = {
    "no source": (lambda p: domains({}), "there are no sources: give at least one"),
    "no target": (lambda p: domains(targets={}), "there are no targets: give at least one"),
    "name": (lambda p: domains({"a.b": array(0)}), r"the source 'a\.b' must consist of letters"),
    "empty name": (lambda p: domains(targets={"": array(0)}), "the target '' must consist"),
    "both": (lambda p: domains({"t": array(0)}), "'t' is both a source and a target"),
    "kind": (
        lambda p: domains({"a": 3}),
        "source 'a': source must be a collection such as Glyphs.*of type int",
    ),
    "shares": (
        lambda p: domains({"a": array(0), "b": array(0)}, batch_size=1),
        "batch_size must be 2 or more for a batch to have samples of a, b, but is 1",
    ),
    "target shares": (
        lambda p: domains(targets={"t": array(0), "u": array(0)}, target_batch_size=1),
        "target_batch_size must be 2 or more",
    ),
    "batch size": (lambda p: domains(batch_size=0), "batch_size must be a whole number from 1"),
    "oracle": (lambda p: domains(oracle="report!"), "oracle must be one of report, select, none.*Did you mean report"),
    "standardize": (lambda p: domains(standardize="domains"), "standardize must be one of.*Did you mean domain"),
    "seed": (lambda p: domains(seed=-1), "seed must be a whole number"),
    "workers": (lambda p: domains(num_workers=-1), "num_workers must be a whole number from 0 to 1000"),
    "few labels": (lambda p: domains(targets={"t": array(0, labels_per_class=2)}), "target 't' has labels_per_class"),
    "balance": (lambda p: domains(targets={"t": array(0, balance="oversample")}), "target 't' has balance, which nee"),
    "target mix": (
        lambda p: domains(targets={"t": array(0, mix=v2.MixUp(num_classes=3))}),
        "target 't' has processing.mix",
    ),
    "mix": (lambda p: domains({"a": array(0, mix=v2.MixUp(num_classes=3))}), "source 'a' has processing.mix"),
    "unlabelled source": (
        lambda p: domains({"a": array(0, 30, None)}),
        "source 'a': arrays has the samples 'x' without labels",
    ),
    "source classes": (
        lambda p: domains({"a": array(0), "b": array(0, 30, NAMES[np.arange(30) % 2])}),
        "all domains must have the same classes, but source 'b' lacks 'dog' of source 'a'",
    ),
    "target classes": (
        lambda p: domains(targets={"t": array(0, 30, np.array(["cat", "cow", "Dog", "ape"])[np.arange(30) % 4])}),
        "same classes, but target 't' has 'Dog' and 1 more, which the sources lack.*Did you mean dog",
    ),
    "target lacks": (
        lambda p: domains(targets={"t": array(0, 30, NAMES[np.arange(30) % 2])}),
        "target 't' lacks 'dog' of the sources",
    ),
    "shape": (
        lambda p: domains({"a": Arrays.from_arrays(features(0, 30, 7), NAMES[np.arange(30) % 3])}),
        r"the same shape, but those of source 'a' are \(7,\) and those of target 't' \(4,\)",
    ),
    "empty": (
        lambda p: domains(targets={"t": Arrays.from_arrays(np.empty((0, 4)), None)}),
        r"target 't': arrays: 'x' of shape \(0, 4\) is empty",
    ),
    "few": (lambda p: domains(targets={"t": array(0, 2, None)}), "target 't': arrays has 2 samples, but needs one for"),
    "not finite": (
        lambda p: domains(targets={"t": Arrays.from_arrays(features(0, 30) / 0, None)}),
        "target 't': arrays: sample 0 holds NaN, infinity or a value beyond float32",
    ),
    "transform": (
        lambda p: domains({"a": array(0, transform=[v2.Lambda(torch.log)])}, standardize="domain"),
        "samples of source 'a' are NaN or infinite after their transform",
    ),
    "texts": (lambda p: domains({"a": texts(p)}), "source 'a': Texts serves texts, but domain adaptation"),
    "target texts": (lambda p: domains(targets={"t": texts(p)}), "target 't': Texts serves texts"),
    "folder": (lambda p: domains({"a": ImageFolder(str(p / "no"))}), "source 'a': image folder '.*/no'"),
}


@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
@pytest.mark.parametrize("name", BAD)
def test_one_sentence(tmp_path, name):
    build, words = BAD[name]
    with pytest.raises(UserError, match=words) as caught:
        build(tmp_path).setup("fit")
    assert "\n" not in str(caught.value)


def test_a_target_without_a_test_split(tmp_path):
    path = str(tmp_path / "a.npz")
    np.savez(path, x_train=features(0, 30))
    data = domains(targets={"t": Arrays(path)})
    data.setup("fit")
    with pytest.raises(UserError, match="target 't' has no test split, only train, val: add one"):
        data.test_dataloader()


# ---- the configuration


CONFIG = """
class_path: DomainDataModule
init_args:
  sources:
    clean: {class_path: Digits, init_args: {image_size: 14}}
    drawn:
      class_path: LabelledDataModule
      init_args: {source: {class_path: TypesetDigits, init_args: {image_size: 14}}}
  targets:
    mine: ROOT
  division: {transductive: true}
  batch_size: 6
"""


def test_domains_are_collections_data_modules_or_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("METATRANSFER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "images").mkdir()
    for number in range(12):
        Image.new("RGB", (84, 84), (20 * number,) * 3).save(tmp_path / "images" / f"{number}.png")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data")
    text = CONFIG.replace("ROOT", str(tmp_path / "images"))
    data = parser.instantiate(parser.parse_object({"data": yaml.safe_load(text)})).data
    assert all(isinstance(one, LabelledDataModule) for one in (*data.sources.values(), *data.targets.values()))
    assert isinstance(data.targets["mine"].collection, ImageFolder)
    assert data.division.transductive
    with pytest.raises(UserError, match="set the same image_size and channels"):
        data.setup("fit")
    small = ImageFolder(str(tmp_path / "images"), 14, 1)
    data = DomainDataModule({"clean": Digits(14)}, {"mine": small}, batch_size=6)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch.source_x.shape == batch.target_x.shape == (6, 1, 14, 14)


def test_positions_are_the_trainers():
    data = domains()
    data.trainer = trainer(epoch=1, batch=2)
    loader = data.train_dataloader()
    assert len(list(loader)) == len(loader) - 2
    assert loader.state_dict() == {}
