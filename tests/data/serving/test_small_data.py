"""Five classes of twenty samples: served in every way, or one sentence that names an argument and a value."""

import re
import time

import numpy as np
import pytest
import torch

from metatransfer import (
    Arrays,
    ClassBatches,
    Collection,
    CrossDomainEpisodes,
    Division,
    DomainDataModule,
    Episodes,
    EpisodicDataModule,
    EvalTask,
    Glyphs,
    LabelledDataModule,
    SemiSupervised,
    Task,
    TensorSource,
    UserError,
)
from metatransfer.batches import episodes_of


def small(classes=5, each=20, shift=0.0):
    count = classes * each
    x = np.random.default_rng(0).normal(size=(count, 4)).astype(np.float32) + shift
    return Arrays.from_arrays(x, np.array([f"product {number % classes}" for number in range(count)]))


def refusal(act):
    with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
        act()
    return str(caught.value)


def by_sample(task=Task(5, 1, 3), **options):  # noqa: B008 - frozen
    given = {"division": Division(by="sample"), "episodes": Episodes(8, 4, 4, 4), **options}
    return EpisodicDataModule(small(), task, **given)


def numbers(episodes):
    """Which sample of the array each sample of the episodes is."""
    all_x = small().opened()["all"].data[:, 0]
    found = torch.cat([torch.cat([one.support_x[..., 0], one.query_x[..., 0]], 1).flatten() for one in episodes])
    return {int((all_x == value).nonzero()) for value in found}


def test_five_classes_are_too_few_for_new_classes_in_the_test():
    sentence = refusal(lambda: EpisodicDataModule(small()).setup("fit"))
    assert "has 5 classes, but three splits need 5 + 5 + 5 = 15 for 5-way" in sentence
    assert "add classes, or set division.by to sample, which tests on new samples of the same classes" in sentence
    assert "lower task.num_ways" not in sentence  # with five classes no number of ways would do


@pytest.mark.parametrize("classes", [6, 8, 14])
def test_the_number_of_ways_that_is_named_works(classes):
    data = small(classes)
    sentence = refusal(lambda: EpisodicDataModule(data).setup("fit"))
    ways = int(re.search(r"lower task.num_ways and eval_task.num_ways to (\d+),", sentence)[1])
    assert ways == classes // 3
    EpisodicDataModule(data, Task(ways, 1, 5)).setup("fit")


def test_division_by_sample():
    data = by_sample()
    data.setup(None)
    used = {
        split: numbers([one for index in range(40) for one in episodes_of(data.episode(split, index))])
        for split in ("train", "val", "test")
    }
    assert [len(one) for one in used.values()] == [60, 20, 20]
    assert not (used["train"] & used["val"])
    assert not (used["train"] & used["test"])
    assert not (used["val"] & used["test"])
    for split in used:
        assert data.open(split).source.class_names == tuple(f"product {number}" for number in range(5))
    assert data.protocol()["split"] == "stratified at random, seed 0"
    assert next(iter(data.train_dataloader())).support_x.shape == (4, 5, 4)


def test_the_number_of_queries_that_is_named_works():
    sentence = refusal(lambda: by_sample(Task()).setup("fit"))
    assert "class 'product 0' has 12 samples, but 5-way 1-shot episodes with 15 queries per class need" in sentence
    assert "lower task.num_queries to 11, or add samples" in sentence
    sentence = refusal(lambda: by_sample(Task(5, 1, 11)).setup("fit"))
    assert "lower eval_task.num_queries to 3" in sentence
    by_sample(Task(5, 1, 11), eval_task=EvalTask(num_queries=3)).setup(None)
    assert "lower task.num_shots to 11, or add" in refusal(lambda: by_sample(Task(5, 30, 1)).setup("fit"))
    assert "lower task.num_shots and num_queries" in refusal(lambda: by_sample(Task(5, 30, 30)).setup("fit"))
    with_unlabelled = Task(5, 1, 9, SemiSupervised(6))
    assert "lower task.num_queries to 5, or the numbers" in refusal(lambda: by_sample(with_unlabelled).setup("fit"))


def test_class_batches_and_several_sources_by_sample():
    data = ClassBatches(by_sample())
    data.setup(None)
    [batch] = data.train_dataloader()  # fewer samples than a batch has: all of them
    assert batch.y.bincount().tolist() == [12] * 5
    cross = CrossDomainEpisodes(by_sample(), {"again": by_sample(seed=1)})
    cross.setup(None)
    assert len(list(cross.test_dataloader()[0])) == 1


def test_labelled_batches():
    data = LabelledDataModule(small())
    data.setup(None)
    assert data.info().class_counts == (14,) * 5
    sentence = refusal(lambda: LabelledDataModule(small(), labels_per_class=15).setup("fit"))
    assert "labels_per_class=15 is more than the 14 training samples of class 'product 0': lower it to 14" in sentence
    LabelledDataModule(small(), labels_per_class=14).setup("fit")
    sentence = refusal(lambda: LabelledDataModule(small(), division=Division(by="class")))
    assert sentence.startswith("division.by=class is for episodes")


def test_two_folders_of_domains():
    data = DomainDataModule({"a": small()}, {"b": small(shift=1.0)})
    data.setup("fit")
    assert len(next(iter(data.train_dataloader())).source_y) == 64
    data.setup("test")
    assert len(torch.cat([batch.y for batch in data.test_dataloader()[0]])) == 20


def test_one_path_is_not_source_and_target(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((4, 2)), y=np.arange(4) % 2)
    (tmp_path / "b").mkdir()
    (tmp_path / "link.npz").symlink_to(tmp_path / "a.npz")
    path = str(tmp_path / "a.npz")
    for other in (path, str(tmp_path / "b" / ".." / "a.npz"), str(tmp_path / "link.npz")):
        sentence = refusal(lambda other=other: DomainDataModule({"s": path}, {"t": other}))
        assert "target 't' has the same path as source 's'" in sentence


# ---- numbers and fractions that cannot be


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda n: Task(num_ways=n), "num_ways must be a whole number from 1 to 100000"),
        (lambda n: Task(num_shots=n), "num_shots must be a whole number from 1 to 1000000"),
        (lambda n: Task(num_queries=n), "num_queries must be"),
        (lambda n: EvalTask(num_ways=n), "num_ways must be"),
        (lambda n: Episodes(train=n), "episodes.train must be a whole number from 1 to 1000000000"),
        (lambda n: Episodes(val=n), "episodes.val must be"),
        (lambda n: Episodes(per_batch=n), "episodes.per_batch must be"),
        (lambda n: LabelledDataModule(small(), n), "batch_size must be"),
        (lambda n: LabelledDataModule(small(), 1, n), "eval_batch_size must be"),
        (lambda n: LabelledDataModule(small(), labels_per_class=n), "labels_per_class must be"),
        (lambda n: LabelledDataModule(small(), num_workers=n), "num_workers must be a whole number from 0 to 1000"),
        (lambda n: DomainDataModule({"a": small()}, {"b": small()}, n), "batch_size must be"),
        (lambda n: DomainDataModule({"a": small()}, {"b": small()}, 2, n), "target_batch_size must be"),
        (lambda n: ClassBatches(by_sample(), n), "batch_size must be"),
        (lambda n: SemiSupervised(n), "num_unlabelled must be"),
    ],
)
@pytest.mark.parametrize("value", [10**18, 10**9 + 1, 2.5])
def test_numbers_are_checked_before_anything_is_allocated(build, words, value):
    start = time.perf_counter()
    sentence = refusal(lambda: build(value))
    assert sentence.startswith(words)
    assert sentence.endswith(f"but is {value}.")
    assert time.perf_counter() - start < 0.5


def test_the_largest_numbers_that_pass_allocate_nothing():
    """An epoch of a billion episodes is drawn batch by batch, and a huge batch has no more than there is."""
    data = by_sample(episodes=Episodes(10**9, 10**9, 4, 2))
    data.setup("fit")
    assert len(data.train_dataloader()) == 5 * 10**8
    assert next(iter(data.train_dataloader())).support_x.shape == (2, 5, 4)
    labelled = LabelledDataModule(small(), 10**6, 10**6)
    assert [len(batch.y) for batch in labelled.val_dataloader()] == [10]
    sentence = refusal(lambda: EpisodicDataModule(Glyphs(), Task(10**5)).setup("fit"))
    assert "100000-way 1-shot episodes" in sentence


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"test_fraction": 2}, "test_fraction is a fraction of the data and must be above 0 and below 1, but is 2"),
        ({"val_fraction": 1.0}, "val_fraction is a fraction of the data and must be above 0 and below 1, but is 1.0"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "but are 0.5 + 0.5: lower one of them"),
        ({"test_fraction": 0.9}, "but are 0.1 (the default) + 0.9: set val_fraction, or lower test_fraction"),
        ({"by": "samples"}, "by must be one of class, sample, but is 'samples'. Did you mean sample"),
    ],
)
def test_fractions(arguments, words):
    assert words in refusal(lambda: LabelledDataModule(small(), division=Division(**arguments)).setup("fit"))


# ---- methods of a collection on a data module, and samples that are not numbers


@pytest.mark.parametrize("base", [EpisodicDataModule, LabelledDataModule])
@pytest.mark.parametrize("name", ["source", "parts", "unlabelled_parts", "convert"])
def test_what_a_collection_defines_is_not_defined_on_a_data_module(base, name):
    sentence = refusal(lambda: type("Mine", (base,), {name: lambda self, split: None}))
    assert f"Mine defines {name}(), which a data module never calls: define a Collection" in sentence
    assert f"{base.__name__}(source=...)" in sentence
    type("Fine", (base,), {"note": lambda self: None})


class WithNaN(Collection):
    def parts(self):
        x = torch.zeros(30, 2)
        x[7, 1] = float("nan")
        return {"all": TensorSource(x, np.arange(30) % 3, "abc", "measurements")}


@pytest.mark.parametrize(
    "serve",
    [
        lambda source: EpisodicDataModule(source, Task(2, 1, 1)),
        LabelledDataModule,
        lambda source: DomainDataModule({"a": small()}, {"b": source}),
    ],
)
def test_samples_with_nan_are_named(serve):
    assert "measurements: sample 7 contains NaN or infinity" in refusal(lambda: serve(WithNaN()).setup("fit"))
