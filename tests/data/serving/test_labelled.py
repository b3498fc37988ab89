"""The base of labelled data: how it is divided, in which order it is served, and what is refused."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from metatransfer.data.labelled import LabelledDataModule
from torchvision.transforms import v2

from metatransfer import Augmentation, LabelledBatch, RandomAffine, TensorSource, UserError
from metatransfer.batches import Tokens, UnlabelledBatch
from metatransfer.data.sources import Source

SIZES = {"a": 50, "b": 20, "c": 3}


def source(sizes, name="all", start=0):
    """Images of one value each, which says what sample it is."""
    labels = np.repeat(np.arange(len(sizes)), list(sizes.values()))
    values = torch.arange(start, start + len(labels), dtype=torch.float32) / 1000
    return TensorSource(values[:, None, None, None].expand(-1, 1, 4, 4).contiguous(), labels, list(sizes), name)


class Samples(LabelledDataModule):
    """Whatever sources it is given."""

    def __init__(self, parts=None, to_label=None, **options):
        super().__init__(**{"batch_size": 8, **options})
        self.given, self.to_label = parts or {"all": source(SIZES)}, to_label

    def parts(self):
        return self.given

    def unlabelled(self):
        return self.to_label or super().unlabelled()


def of_epoch(data, epoch, batch=0, rank=0, world=1):
    progress = SimpleNamespace(batch_progress=SimpleNamespace(current=SimpleNamespace(ready=batch)))
    data.trainer = SimpleNamespace(
        global_rank=rank, world_size=world, current_epoch=epoch, overfit_batches=0, is_global_zero=True,
        fit_loop=SimpleNamespace(epoch_loop=progress), strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )  # fmt: skip
    return list(data.train_dataloader())


def numbers(batches):
    return [number for batch in batches for number in batch.number.tolist()]


def values(split):
    """Which samples of the source a split has."""
    return set(split.indices.tolist())


def counts(data):
    return {name: split.counts.tolist() for name, split in data.splits.items()}


# ---- division


def test_every_class_is_divided():
    data = Samples()
    assert counts(data) == {"train": [35, 14, 1], "val": [5, 2, 1], "test": [10, 4, 1]}
    train, val, test = (values(data.split(name)) for name in ("train", "val", "test"))
    assert not train & val
    assert not train & test
    assert not val & test
    assert train | val | test == set(range(73))
    assert data.class_names == ("a", "b", "c")
    assert data.num_classes == 3
    assert data.class_counts.tolist() == [35, 14, 1]
    assert data.sample_shape() == (1, 4, 4)


def test_the_division_follows_the_seed():
    first, again, other = (Samples(seed=seed).split("test").indices.tolist() for seed in (0, 0, 1))
    assert first == again
    assert first != other
    # whatever else is asked for
    assert Samples(labels_per_class=1, batch_size=3).split("test").indices.tolist() == first


def test_the_division_never_changes():
    """People compare numbers across machines and versions."""
    data = Samples({"all": source({"a": 6, "b": 5})}, seed=3)
    assert {name: split.indices.tolist() for name, split in data.splits.items()} == {
        "train": [1, 2, 3, 5, 8, 9, 10],
        "val": [0, 6],
        "test": [4, 7],
    }


@pytest.mark.parametrize(
    ("fractions", "expected"),
    [
        ((0.5, 0.4), {"train": [5, 2, 1], "val": [25, 10, 1], "test": [20, 8, 1]}),
        ((0.001, 0.989), {"train": [1, 1, 1], "val": [1, 1, 1], "test": [48, 18, 1]}),
    ],
)
def test_every_class_has_a_sample_everywhere(fractions, expected):
    assert counts(Samples(val_fraction=fractions[0], test_fraction=fractions[1])) == expected


def test_validation_is_taken_from_the_training_but_a_test_never():
    data = Samples({"train": source({"a": 20, "b": 10})})
    assert counts(data) == {"train": [18, 9], "val": [2, 1]}
    data.setup("fit")
    data.setup(None)
    with pytest.raises(UserError, match="has no test split: the data comes divided into train, val; add it"):
        data.setup("test")
    data = Samples({"train": source({"a": 20, "b": 10}), "test": source({"a": 5, "b": 5})})
    assert counts(data) == {"train": [18, 9], "val": [2, 1], "test": [5, 5]}
    assert data.protocol()["split"] == "stratified at random, seed 0"


def test_given_splits_stay_as_they_are():
    data = Samples({"train": source({"a": 4, "b": 2}), "val": source({"b": 3}), "test": source({"b": 1, "a": 2})})
    assert counts(data) == {"train": [4, 2], "val": [0, 3], "test": [2, 1]}
    assert data.split("val").labels.tolist() == [1, 1, 1]
    assert data.split("test").labels.tolist() == [1, 0, 0]  # labels are those of the training, whatever the order
    assert data.protocol()["split"] == "as given"
    assert [batch.y.tolist() for batch in data.val_dataloader()] == [[1, 1, 1]]


def test_few_labels_are_nested():
    splits = {count: Samples(labels_per_class=count).split("train") for count in (None, 1)}
    assert splits[1].counts.tolist() == [1, 1, 1]
    big = {"all": source({"a": 60, "b": 40})}
    chosen = [values(Samples(big, labels_per_class=count).split("train")) for count in (1, 4, 16, 28)]
    for less, more in pairwise(chosen):
        assert less < more
    assert chosen[-1] < values(Samples(big).split("train"))
    assert [len(one) for one in chosen] == [2, 8, 32, 56]
    assert values(Samples(big, labels_per_class=4, seed=1).split("train")) != chosen[1]
    data = Samples(big, labels_per_class=4)
    assert data.class_counts.tolist() == [4, 4]
    assert counts(data)["test"] == [12, 8]


# ---- batches


def test_a_batch_is_samples_with_their_labels_and_numbers():
    data = Samples()
    split = data.split("train")
    for batch in of_epoch(data, 0):
        assert isinstance(batch, LabelledBatch)
        assert batch.x.shape == (8, 1, 4, 4)
        assert batch.y.tolist() == split.labels[batch.number].tolist()
        shown = (batch.x[:, 0, 0, 0] * 1000).round().int().tolist()
        assert shown == split.indices[batch.number].tolist()


def test_every_epoch_has_every_sample_once_in_another_order():
    data = Samples(batch_size=10)
    first, second = (numbers(of_epoch(data, epoch)) for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    assert numbers(of_epoch(data, 0)) == first
    assert numbers(of_epoch(Samples(batch_size=25), 0)) == first  # whatever the batch
    assert numbers(of_epoch(Samples(batch_size=10, seed=1), 0)) != first


@pytest.mark.parametrize("balance", ["none", "oversample"])
def test_processes_share_an_epoch(balance):
    whole = of_epoch(Samples(batch_size=10, balance=balance), 2)
    parts = [of_epoch(Samples(batch_size=5, balance=balance), 2, rank=rank, world=2) for rank in range(2)]
    for together, one, two in zip(whole, *parts, strict=True):
        assert sorted(together.number.tolist()) == sorted([*one.number.tolist(), *two.number.tolist()])
    if balance == "none":
        assert not set(numbers(parts[0])) & set(numbers(parts[1]))


@pytest.mark.parametrize("options", [{}, {"balance": "oversample", "mix": v2.MixUp()}])
def test_a_resumed_epoch_goes_on_with_the_next_batch(options):
    data = Samples(**options)
    whole, rest = of_epoch(data, 3), of_epoch(Samples(**options), 3, batch=4)
    assert len(whole) == 6
    assert len(rest) == 2
    for one, two in zip(whole[4:], rest, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_a_last_batch_that_is_not_full_is_left_out_unless_there_is_no_other():
    assert [len(batch.y) for batch in of_epoch(Samples(batch_size=20), 0)] == [20, 20]
    assert [len(batch.y) for batch in of_epoch(Samples(batch_size=64), 0)] == [50]
    assert [len(batch.y) for batch in of_epoch(Samples(batch_size=64), 0, rank=1, world=3)] == [16]
    with pytest.raises(UserError, match="50 training samples are fewer than the 51 processes"):
        of_epoch(Samples(), 0, world=51)


def test_evaluation_has_every_sample_in_its_order():
    data = Samples(eval_batch_size=7)
    for loader, count in ((data.val_dataloader(), 8), (data.test_dataloader(), 15), (data.train_samples(), 50)):
        batches = list(loader)
        assert len(batches) == len(loader) == -(-count // 7)
        assert numbers(batches) == list(range(count))
    shares = []
    for rank in range(2):
        of_epoch(data, 0, rank=rank, world=2)
        shares.append(numbers(data.test_dataloader()))
    assert shares == [list(range(0, 15, 2)), list(range(1, 15, 2))]


def test_oversampling_makes_classes_equal():
    data = Samples({"train": source({"a": 60, "b": 9, "c": 3}), "val": source({"a": 1})}, balance="oversample")
    data.batch_size = 72
    first, second = (of_epoch(data, epoch)[0] for epoch in (0, 1))
    for batch in (first, second):
        assert batch.y.bincount().tolist() == [24, 24, 24]
        assert len(batch.number[batch.y == 0].unique()) == 24  # nothing twice where there is enough
        assert sorted(batch.number[batch.y == 1].bincount()[60:].tolist()) == [2, 2, 2, 3, 3, 3, 3, 3, 3]
        assert batch.number[batch.y == 2].bincount()[69:].tolist() == [8, 8, 8]
    assert first.number.tolist() != second.number.tolist()
    assert numbers(data.val_dataloader()) == [0]


@pytest.mark.parametrize("mix", [v2.MixUp(), v2.CutMix(), v2.RandomChoice([v2.MixUp(), v2.CutMix()])])
def test_mixed_labels_sum_to_one_and_repeat(mix):
    data = Samples(mix=mix, batch_size=16)
    state = torch.get_rng_state()
    batches, again = of_epoch(data, 0), of_epoch(data, 0)
    assert torch.equal(torch.get_rng_state(), state)  # the training's random numbers are left alone
    assert any((batch.y.max(1).values < 1).any() for batch in batches)
    for one, two in zip(batches, again, strict=True):
        assert one.y.shape == (16, 3)
        torch.testing.assert_close(one.y.sum(1), torch.ones(16))
        assert torch.equal(one.x, two.x)
        assert torch.equal(one.y, two.y)
    assert not torch.equal(of_epoch(data, 1)[0].y, batches[0].y)
    assert next(iter(data.val_dataloader())).y.dtype == torch.int64


class Shift(Augmentation):
    num_random = 1

    def __call__(self, x, u):
        return x + u.view(-1, 1, 1, 1)


def test_augmentation_is_for_the_training_and_a_transform_for_all():
    plain, changed = Samples(), Samples(augmentation=Shift(), transform=[v2.Normalize([0.5], [0.5])])
    one, two = (of_epoch(data, 0)[0] for data in (plain, changed))
    shifts = (two.x * 0.5 + 0.5 - one.x)[:, 0, 0, 0]
    assert len(shifts.unique()) == 8
    one, two = (next(iter(data.val_dataloader())).x for data in (plain, changed))
    torch.testing.assert_close(two * 0.5 + 0.5, one)
    assert Samples(transform=[v2.Resize(6)]).sample_shape() == (1, 6, 6)


def test_show():
    data = Samples(transform=[v2.Normalize([0.5], [0.5])])
    shown = data.show("val", 2)
    torch.testing.assert_close(shown, torch.full((1, 4, 4), data.split("val").indices[2].item() / 1000))


def test_predict():
    data = Samples(to_label=(source({"?": 5}), tuple("abcde")), batch_size=2, transform=[v2.Resize(2)])
    data.setup("predict")
    batches = list(data.predict_dataloader())
    assert len(data.predict_dataloader()) == 3
    assert all(isinstance(batch, UnlabelledBatch) for batch in batches)
    assert [batch.files for batch in batches] == [("a", "b"), ("c", "d"), ("e",)]
    assert batches[2].x.shape == (1, 1, 2, 2)
    torch.testing.assert_close(torch.cat([batch.x for batch in batches])[:, 0, 0, 0] * 1000, torch.arange(5.0))


def test_protocol():
    card = Samples(labels_per_class=1, mix=v2.MixUp(), augmentation=RandomAffine()).protocol()
    assert card["classes"] == 3
    assert card["samples"] == {"val": 8, "test": 15}
    assert card["train_batches"]["samples"] == 3
    assert card["train_batches"]["mix"] == "MixUp"
    assert "RandomAffine" in card["augmentation"]


class Texts(Source):
    """Texts of one token."""

    in_memory = True

    @property
    def sample_shape(self):
        return ()

    def read(self, indices, device):
        return Tokens(indices[:, None], torch.ones_like(indices)[:, None])


def texts(**options):
    return Samples({"all": Texts(np.arange(20) % 2, ["a", "b"], "texts")}, **options)


def test_texts():
    data = texts()
    batch = of_epoch(data, 0)[0]
    assert batch.x.ids[:, 0].tolist() == data.split("train").indices[batch.number].tolist()
    assert data.sample_shape() == ()
    assert isinstance(data.show("val", 0), str)


def vectors(**options):
    return Samples({"all": TensorSource(torch.rand(20, 3), np.arange(20) % 2, ["a", "b"], "vectors")}, **options)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Samples(batch_size=0), "batch_size must be a number above 0, but is 0"),
        (lambda: Samples(labels_per_class=0), "labels_per_class must be a number above 0"),
        (lambda: Samples(val_fraction=0), "val_fraction must be a number above 0"),
        (lambda: Samples(val_fraction=0.5, test_fraction=0.5), r"must be below 1 .* are 0\.5 \+ 0\.5"),
        (lambda: Samples(seed=-1), "seed must be a whole number"),
        (lambda: Samples(balance="oversampling"), "balance must be one of none, oversample.* mean oversample"),
        (lambda: Samples(num_workers=-1), "num_workers must be 0 or more"),
        (lambda: Samples(transform=[v2.RandomCrop(2)]), "random"),
        (lambda: Samples(labels_per_class=2).setup("fit"), "is more than class 'c' has for training, 1: lower it"),
        (lambda: Samples().setup("predict"), "Samples has nothing to label"),
        (lambda: Samples({"all": source({"a": 9})}).setup("fit"), "all has one class only.*'a'"),
        (lambda: Samples({"all": source({})}).setup("fit"), "all has no samples: add some"),
        (
            lambda: Samples({"all": source({"a": 9, "b": 2})}).setup("fit"),
            "class 'b' has 2 samples, but needs one for each of train, val, test",
        ),
        (
            lambda: Samples({"train": source({"cat": 9, "b": 2}), "val": source({"b": 1, "Cat": 1})}).setup("fit"),
            "has a class that the training has no sample of .'Cat'.* take it out of val. Did you mean cat",
        ),
        (
            lambda: Samples({"train": source({"a": 9, "b": 2}), "val": source({}, "val")}).setup("fit"),
            "val has no samples: add some, or leave val out",
        ),
        (lambda: of_epoch(vectors(mix=v2.MixUp()), 0), r"mix, MixUp.*fails on samples of shape \(8, 3\)"),
        (lambda: of_epoch(texts(augmentation=RandomAffine()), 0), "augmentation changes samples of numbers"),
        (lambda: of_epoch(texts(mix=v2.MixUp()), 0), "mix changes samples of numbers, but these are texts"),
    ],
)
def test_one_sentence(build, words):
    with pytest.raises(UserError, match=words) as caught:
        build()
    assert "\n" not in str(caught.value)
