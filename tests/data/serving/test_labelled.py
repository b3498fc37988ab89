"""The base of labelled data: how it is divided, in which order it is served, and what is refused."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from metatransfer import Augmentation, LabelledBatch, RandomAffine, Sinusoids, TensorSource, UserError
from metatransfer.batches import Tokens, UnlabelledBatch
from metatransfer.data.sources import Encoder, Source
from serving_by_names import Given, episodic, labelled

SIZES = {"a": 50, "b": 20, "c": 3}


def source(sizes, name="all", start=0):
    """Images of one value each, which says what sample it is."""
    labels = np.repeat(np.arange(len(sizes)), list(sizes.values()))
    values = torch.arange(start, start + len(labels), dtype=torch.float32) / 1000
    return TensorSource(values[:, None, None, None].expand(-1, 1, 4, 4).contiguous(), labels, list(sizes), name)


class Samples(Given):
    """Whatever sources it is given."""

    def __init__(self, parts, to_label=None, **attributes):
        super().__init__(parts, **attributes)
        self.to_label = to_label

    def unlabelled(self, path):
        return self.to_label or super().unlabelled(path)


def served(parts=None, to_label=None, **options):
    return labelled(Samples(parts or {"all": source(SIZES)}, to_label), **{"batch_size": 8, **options})


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
    return {name: view.sizes.tolist() for name, view in data.splits.parts.items()}


# ---- division


def test_every_class_is_divided():
    data = served()
    assert counts(data) == {"train": [35, 14, 1], "val": [5, 2, 1], "test": [10, 4, 1]}
    train, val, test = (values(data.split(name)) for name in ("train", "val", "test"))
    assert not train & val
    assert not train & test
    assert not val & test
    assert train | val | test == set(range(73))
    info = data.info()
    assert info.class_names == ("a", "b", "c")
    assert info.class_counts == (35, 14, 1)
    assert info.sample_shape == (1, 4, 4)


def test_the_division_follows_the_seed():
    first, again, other = (served(seed=seed).split("test").indices.tolist() for seed in (0, 0, 1))
    assert first == again
    assert first != other
    # whatever else is asked for
    assert served(labels_per_class=1, batch_size=3).split("test").indices.tolist() == first


def test_the_division_never_changes():
    """People compare numbers across machines and versions."""
    data = served({"all": source({"a": 6, "b": 5})}, seed=3)
    assert {name: view.indices.tolist() for name, view in data.splits.parts.items()} == {
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
    assert counts(served(val_fraction=fractions[0], test_fraction=fractions[1])) == expected


def test_validation_is_taken_from_the_training_but_a_test_never():
    data = served({"train": source({"a": 20, "b": 10})})
    assert counts(data) == {"train": [18, 9], "val": [2, 1]}
    data.setup("fit")
    data.setup(None)
    with pytest.raises(UserError, match="has no test split, only train, val: add it"):
        data.setup("test")
    data = served({"train": source({"a": 20, "b": 10}), "test": source({"a": 5, "b": 5})})
    assert counts(data) == {"train": [18, 9], "val": [2, 1], "test": [5, 5]}
    assert data.protocol()["split"] == "stratified at random, seed 0"


def test_given_splits_stay_as_they_are():
    data = served({"train": source({"a": 4, "b": 2}), "val": source({"b": 3}), "test": source({"b": 1, "a": 2})})
    assert counts(data) == {"train": [4, 2], "val": [0, 3], "test": [2, 1]}
    assert data.split("val").labels.tolist() == [1, 1, 1]
    assert data.split("test").labels.tolist() == [1, 0, 0]  # labels are those of the training, whatever the order
    assert data.protocol()["split"] == "as given"
    assert [batch.y.tolist() for batch in data.val_dataloader()] == [[1, 1, 1]]


def test_few_labels_are_nested():
    splits = {count: served(labels_per_class=count).split("train") for count in (None, 1)}
    assert splits[1].sizes.tolist() == [1, 1, 1]
    big = {"all": source({"a": 60, "b": 40})}
    chosen = [values(served(big, labels_per_class=count).split("train")) for count in (1, 4, 16, 28)]
    for less, more in pairwise(chosen):
        assert less < more
    assert chosen[-1] < values(served(big).split("train"))
    assert [len(one) for one in chosen] == [2, 8, 32, 56]
    assert values(served(big, labels_per_class=4, seed=1).split("train")) != chosen[1]
    data = served(big, labels_per_class=4)
    assert data.info().class_counts == (4, 4)
    assert counts(data)["test"] == [12, 8]


# ---- batches


def test_a_batch_is_samples_with_their_labels_and_numbers():
    data = served()
    split = data.split("train")
    for batch in of_epoch(data, 0):
        assert isinstance(batch, LabelledBatch)
        assert batch.x.shape == (8, 1, 4, 4)
        assert batch.y.tolist() == split.labels[batch.number].tolist()
        shown = (batch.x[:, 0, 0, 0] * 1000).round().int().tolist()
        assert shown == split.indices[batch.number].tolist()


def test_every_epoch_has_every_sample_once_in_another_order():
    data = served(batch_size=10)
    first, second = (numbers(of_epoch(data, epoch)) for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    assert numbers(of_epoch(data, 0)) == first
    assert numbers(of_epoch(served(batch_size=25), 0)) == first  # whatever the batch
    assert numbers(of_epoch(served(batch_size=10, seed=1), 0)) != first


@pytest.mark.parametrize("balance", ["none", "oversample"])
def test_processes_share_an_epoch(balance):
    whole = of_epoch(served(batch_size=10, balance=balance), 2)
    parts = [of_epoch(served(batch_size=5, balance=balance), 2, rank=rank, world=2) for rank in range(2)]
    for together, one, two in zip(whole, *parts, strict=True):
        assert sorted(together.number.tolist()) == sorted([*one.number.tolist(), *two.number.tolist()])
    if balance == "none":
        assert not set(numbers(parts[0])) & set(numbers(parts[1]))


@pytest.mark.parametrize("options", [{}, {"balance": "oversample", "mix": v2.MixUp()}])
def test_a_resumed_epoch_goes_on_with_the_next_batch(options):
    data = served(**options)
    whole, rest = of_epoch(data, 3), of_epoch(served(**options), 3, batch=4)
    assert len(whole) == 6
    assert len(rest) == 2
    for one, two in zip(whole[4:], rest, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_a_last_batch_that_is_not_full_is_left_out_unless_there_is_no_other():
    assert [len(batch.y) for batch in of_epoch(served(batch_size=20), 0)] == [20, 20]
    assert [len(batch.y) for batch in of_epoch(served(batch_size=64), 0)] == [50]
    assert [len(batch.y) for batch in of_epoch(served(batch_size=64), 0, rank=1, world=3)] == [16]
    with pytest.raises(UserError, match="50 training samples for 51 processes"):
        of_epoch(served(), 0, world=51)


def test_evaluation_has_every_sample_in_its_order():
    data = served(eval_batch_size=7)
    for loader, count in (
        (data.val_dataloader(), 8),
        (data.test_dataloader(), 15),
        (data.train_samples(), 50),
        (data.samples("val"), 8),
    ):
        batches = list(loader)
        assert len(batches) == len(loader) == -(-count // 7)
        assert numbers(batches) == list(range(count))
    shares = []
    for rank in range(2):
        of_epoch(data, 0, rank=rank, world=2)
        shares.append(numbers(data.test_dataloader()))
    assert shares == [list(range(0, 15, 2)), list(range(1, 15, 2))]


def test_oversampling_makes_classes_equal():
    data = served({"train": source({"a": 60, "b": 9, "c": 3}), "val": source({"a": 1})}, balance="oversample")
    data.batch_size = 72
    first, second = (of_epoch(data, epoch)[0] for epoch in (0, 1))
    for batch in (first, second):
        assert batch.y.bincount().tolist() == [24, 24, 24]
        assert len(batch.number[batch.y == 0].unique()) == 24  # nothing twice where there is enough
        assert sorted(batch.number[batch.y == 1].bincount()[60:].tolist()) == [2, 2, 2, 3, 3, 3, 3, 3, 3]
        assert batch.number[batch.y == 2].bincount()[69:].tolist() == [8, 8, 8]
    assert first.number.tolist() != second.number.tolist()
    assert numbers(data.val_dataloader()) == [0]


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_evaluation_is_not_balanced(split):
    """With classes of 50, 20 and 3 samples, a balanced pass would repeat samples of the third."""
    data = served(balance="oversample", augmentation=Shift(), batch_size=7)
    whole = data.splits.part(split)
    in_order = {"train": data.train_samples, "val": data.val_dataloader, "test": data.test_dataloader}
    for loader in (in_order[split](), data.samples(split)):
        found = list(loader)
        assert torch.cat([batch.number for batch in found]).tolist() == list(range(len(whole)))
        assert torch.cat([batch.y for batch in found]).tolist() == whole.labels.tolist()


@pytest.mark.parametrize("mix", [v2.MixUp(), v2.CutMix(), v2.RandomChoice([v2.MixUp(), v2.CutMix()])])
def test_mixed_labels_sum_to_one_and_repeat(mix):
    data = served(mix=mix, batch_size=16)
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
    plain, changed = served(), served(augmentation=Shift(), transform=[v2.Normalize([0.5], [0.5])])
    one, two = (of_epoch(data, 0)[0] for data in (plain, changed))
    shifts = (two.x * 0.5 + 0.5 - one.x)[:, 0, 0, 0]
    assert len(shifts.unique()) == 8
    one, two = (next(iter(data.val_dataloader())).x for data in (plain, changed))
    torch.testing.assert_close(two * 0.5 + 0.5, one)
    assert served(transform=[v2.Resize(6)]).info().sample_shape == (1, 6, 6)


def test_show():
    data = served(transform=[v2.Normalize([0.5], [0.5])])
    shown = data.show("val", 2)
    torch.testing.assert_close(shown, torch.full((1, 4, 4), data.split("val").indices[2].item() / 1000))


def test_predict():
    data = served(to_label=(source({"?": 5}), tuple("abcde")), predict="some", batch_size=2, transform=[v2.Resize(2)])
    data.setup("predict")
    batches = list(data.predict_dataloader())
    assert len(data.predict_dataloader()) == 3
    assert all(isinstance(batch, UnlabelledBatch) for batch in batches)
    assert [batch.files for batch in batches] == [("a", "b"), ("c", "d"), ("e",)]
    assert batches[2].x.shape == (1, 1, 2, 2)
    torch.testing.assert_close(torch.cat([batch.x for batch in batches])[:, 0, 0, 0] * 1000, torch.arange(5.0))


def test_protocol():
    card = served(labels_per_class=1, mix=v2.MixUp(), augmentation=RandomAffine()).protocol()
    assert card["classes"] == 3
    assert card["samples"] == {"val": 8, "test": 15}
    assert card["train_batches"]["samples"] == 3
    assert card["train_batches"]["mix"] == "MixUp"
    assert "RandomAffine" in card["augmentation"]


class Vocabulary(Encoder):
    """Numbers the texts that it has seen; 0 is any other."""

    shared = False

    def __init__(self, texts):
        self.texts, self.size = sorted(texts), 1 + len(texts)

    def state(self):
        return {"texts": self.texts}

    def key(self):
        return ",".join(self.texts)


class TextSource(Source):
    """Texts "t0", "t1", ... of as many equal tokens as their number says."""

    def __init__(self, count, encoder=None):
        super().__init__(np.arange(count) % 2, ["a", "b"], "texts")
        self.encoder = encoder

    @property
    def sample_shape(self):
        return ()

    def show(self, index):
        return f"t{index}"

    def update_fingerprint(self, digest, indices):
        digest.update(indices.tobytes())

    def encoded(self, encoder):
        return TextSource(len(self), encoder)

    def lengths(self, indices):
        return np.asarray(indices) + 1

    def read(self, indices, device):
        known = {text: number for number, text in enumerate(self.encoder.texts, start=1)}
        ids = torch.tensor([known.get(f"t{index}", 0) for index in indices.flatten().tolist()]).view(indices.shape)
        mask = (torch.arange(int(indices.max()) + 1) <= indices[..., None]).long()
        return Tokens(mask * ids[..., None], mask)


class Sentences(Given):
    of_texts = True

    def encoder(self, training):
        return Vocabulary([training.show(number) for number in range(len(training))])

    def encoder_from(self, state):
        return Vocabulary(state["texts"])


def texts(count=40, **options):
    return labelled(Sentences({"all": TextSource(count)}), **{"batch_size": 4, **options})


def test_texts_are_read_through_words_of_the_training_and_served_by_length():
    data = texts()
    info = data.info()
    assert (info.sample_shape, info.vocabulary_size, info.shared_vocabulary) == ((), 29, False)
    for batch in of_epoch(data, 0):
        lengths = batch.x.mask.sum(1)
        assert batch.x.ids.shape[1] == lengths.max()
        assert batch.x.ids[:, 0].min() > 0
    spread = [int(batch.x.mask.sum(1).max() - batch.x.mask.sum(1).min()) for batch in of_epoch(data, 0)]
    assert max(spread) < 15  # 40 if they were not sorted
    unknown = torch.cat([batch.x.ids[:, 0] for batch in data.test_dataloader()])
    assert not unknown.any()
    assert data.show("val", 0) == f"t{data.split('val').indices[0]}"
    longest_first = torch.cat([batch.x.mask.sum(1) for batch in data.samples("train")])
    assert longest_first.tolist() == sorted(longest_first.tolist(), reverse=True)
    assert data.labels("train")[0] == data.split("train").labels[0]


def test_the_words_of_a_checkpoint_stay():
    data, later = texts(seed=1), texts(seed=2)
    own = later.content_key("train")
    later.load_state_dict(data.state_dict())
    assert later.encoder.texts == data.encoder.texts != texts(seed=2).encoder.texts
    assert later.content_key("train") != own
    assert later.reseeded(2).encoder.texts == texts(seed=2).encoder.texts


def test_texts_as_episodes():
    data = episodic(Sentences({"all": EightTexts(64)}), num_ways=2, num_queries=2, per_batch=3)
    batch = next(iter(data.train_dataloader()))
    assert batch.support_x.ids.shape[:2] == (3, 2)
    assert batch.support_x.ids.shape == batch.support_x.mask.shape
    assert batch.query_x.ids.shape[:2] == (3, 4)
    assert data.info().vocabulary_size == 1 + 32
    turned = episodic(Sentences({"all": EightTexts(64)}), num_ways=2, num_queries=2, rotations="per_class")
    with pytest.raises(UserError, match="rotations turn images"):
        turned.episode("train", 0)
    with pytest.raises(UserError, match="augmentation is for images and vectors, but these samples are texts"):
        next(
            iter(
                episodic(
                    Sentences({"all": EightTexts(64)}), num_ways=2, num_queries=2, augmentation=Shift()
                ).train_dataloader()
            )
        )


class EightTexts(TextSource):
    """The same in eight classes."""

    def __init__(self, count, encoder=None):
        Source.__init__(self, np.arange(count) % 8, list("abcdefgh"), "texts")
        self.encoder = encoder

    def encoded(self, encoder):
        return EightTexts(len(self), encoder)


def test_splits_of_different_classes_are_pooled(caplog):
    parts = {"train": source({"a": 20, "b": 20}), "test": source({"c": 20}, start=40)}
    data = served(parts)
    with caplog.at_level("INFO"):
        assert data.info().class_names == ("a", "b", "c")
    assert "train and test have different classes" in caplog.text
    assert counts(data) == {"train": [14] * 3, "val": [2] * 3, "test": [4] * 3}
    assert data.protocol()["split"] == "classes of all splits pooled, then stratified at random, seed 0"


def vectors(**options):
    return served({"all": TensorSource(torch.rand(20, 3), np.arange(20) % 2, ["a", "b"], "vectors")}, **options)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: served(batch_size=0), "batch_size must be a whole number from 1 to 1000000, but is 0"),
        (lambda: served(labels_per_class=0), "labels_per_class must be a whole number from 1"),
        (lambda: served(val_fraction=0), "val_fraction is a fraction of the data and must be above 0 and below 1"),
        (lambda: served(val_fraction=0.5, test_fraction=0.5), r"must be below 1 .* are 0\.5 \+ 0\.5"),
        (lambda: served(seed=-1), "seed must be a whole number"),
        (lambda: served(balance="oversampling"), "balance must be one of none, oversample.* mean oversample"),
        (lambda: served(num_workers=-1), "num_workers must be a whole number from 0 to 1000"),
        (lambda: served(transform=[v2.RandomCrop(2)]), "random"),
        (lambda: served(labels_per_class=2).setup("fit"), "is more than the 1 training samples of class 'c': lower it"),
        (lambda: served().setup("predict"), "there is nothing to label: give .* --data.predict"),
        (lambda: served({"all": source({"a": 9})}).setup("fit"), "all has only one class.*'a'"),
        (lambda: served({"all": source({})}).setup("fit"), "all has no samples: add some"),
        (
            lambda: served({"all": source({"a": 9, "b": 2})}).setup("fit"),
            "class 'b' has 2 samples, but needs one for each of train, val, test",
        ),
        (
            lambda: served({"train": source({"cat": 9, "b": 2}), "val": source({"b": 1, "Cat": 1})}).setup("fit"),
            "has 1 classes without any training sample .'Cat'.* remove these classes from val. Did you mean cat",
        ),
        (
            lambda: served({"train": source({"a": 9, "b": 2}), "val": source({}, "val")}).setup("fit"),
            "val has no samples: add some, or leave val out",
        ),
        (lambda: of_epoch(vectors(mix=v2.MixUp()), 0), r"mix, MixUp.*fails on samples of shape \(8, 3\)"),
        (
            lambda: texts(augmentation=RandomAffine()),
            "processing.augmentation is for images, but Sentences serves texts",
        ),
        (lambda: texts(mix=v2.MixUp()), "processing.mix is for images"),
        (lambda: served(rotations="classes"), "processing.rotations are for episodes"),
        (lambda: labelled(Sinusoids()).info(), "Sinusoids generates tasks and has no samples"),
    ],
)
def test_one_sentence(build, words):
    with pytest.raises(UserError, match=words) as caught:
        build()
    assert "\n" not in str(caught.value)
