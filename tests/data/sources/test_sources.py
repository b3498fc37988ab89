"""Sources: what they refuse and how they read."""

import numpy as np
import pytest
import torch

from metatransfer import LabelledDataModule, UserError
from metatransfer.data import Source, TensorSource
from serving_by_names import Given, episodic

CPU = torch.device("cpu")


def test_order_offsets_and_sizes_find_every_sample_of_a_class():
    labels = [2, 0, 2, 1, 0, 2]
    source = TensorSource(torch.zeros(6, 1), labels, ["a", "b", "c"], "S")
    assert len(source) == 6
    assert source.sizes.tolist() == [2, 1, 3]
    for k in range(3):
        members = source.order[source.offsets[k] : source.offsets[k] + source.sizes[k]]
        assert members.tolist() == [i for i, label in enumerate(labels) if label == k]


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor])
def test_labels_of_any_kind(kind):
    assert TensorSource(torch.zeros(3, 1), kind([1, 0, 1]), ["a", "b"], "S").sizes.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("labels", "names", "words"),
    [
        ([0, 2], "ab", ["Toys", "0 .. 1", "2 class names", "from 0 to 2"]),
        ([-1, 0], "ab", ["Toys", "from -1 to 0"]),
        ([0, 2, 2], ["a", "empty", "c"], ["Toys", "class 'empty'", "no samples"]),
        ([], ["a"], ["Toys", "'a'", "no samples"]),
        ([0], "ab", ["Toys", "'b'"]),
    ],
)
def test_refusals(labels, names, words):
    with pytest.raises(UserError) as caught:
        TensorSource(torch.zeros(len(labels), 1), labels, names, "Toys")
    assert all(word in str(caught.value) for word in words), caught.value


def test_data_and_labels_of_different_lengths():
    with pytest.raises(UserError, match=r"Toys: there are 2 labels for 3 samples"):
        TensorSource(torch.zeros(3, 1), [0, 1], "ab", "Toys")


@pytest.mark.parametrize("labels", [[0.5, 1.5], np.array([0.0, 1.7]), torch.tensor([0.2, 1.2])])
def test_labels_that_are_no_integers_are_not_cut_off(labels):
    with pytest.raises((UserError, TypeError)):
        TensorSource(torch.zeros(2, 1), labels, "ab", "Toys")


def test_labels_with_an_axis_too_many_are_refused_in_words():
    with pytest.raises(UserError, match=r"Toys"):
        TensorSource(torch.zeros(2, 1), [[0], [1]], "ab", "Toys")


def test_bytes_become_floats_in_0_1():
    data = torch.tensor([[0], [51], [255]], dtype=torch.uint8)
    source = TensorSource(data, [0, 0, 1], "ab", "S")
    read = source.read(torch.tensor([[2, 0], [1, 1]]), CPU)
    assert read.dtype == torch.float32
    assert read.shape == (2, 2, 1)
    torch.testing.assert_close(read[..., 0], torch.tensor([[1.0, 0.0], [0.2, 0.2]]))
    assert data.tolist() == [[0], [51], [255]]


def test_reading_gives_fresh_float32():
    data = torch.tensor([[1.5], [2.5]], dtype=torch.float64)
    source = TensorSource(data, [0, 1], "ab", "S")
    read = source.read(torch.tensor([0]), CPU)
    assert read.dtype == torch.float32
    read.zero_()
    assert data[0, 0] == 1.5
    assert source.sample_shape == (1,)


def test_float32_data_is_not_shared_with_what_was_read():
    data = torch.ones(2, 1)
    TensorSource(data, [0, 1], "ab", "S").read(torch.tensor([0]), CPU).zero_()
    assert data.tolist() == [[1.0], [1.0]]


def test_source_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Source([0], ["a"], "S")


class Files(Source):
    """Samples read one by one, one of which is NaN."""

    sample_shape = (3,)

    def __init__(self, names="abc"):
        super().__init__(np.arange(60) % 3, names, "Files")

    def read(self, indices, device):
        x = indices[..., None].float().expand(*indices.shape, 3).clone()
        x[indices == 43] = torch.nan
        return x.to(device)


@pytest.mark.parametrize(
    ("served", "expected", "count"),
    [
        (lambda: LabelledDataModule(Given({"all": Files()}), batch_size=1), set(), 1),
        (lambda: LabelledDataModule(Given({"train": Files(), "test": Files()}), batch_size=1), {"test"}, 2),
        (
            lambda: episodic(
                Given({"train": Files("abc"), "val": Files("def"), "test": Files("ghi")}, divided_by="class"),
                num_ways=3, num_shots=5, num_queries=10, per_batch=1, train_episodes=10, val_episodes=5,
                test_episodes=5,
            ),
            {"train", "val", "test"}, 3,
        ),
    ],
    ids=["divided", "in splits", "episodes"],
)  # fmt: skip
def test_samples_that_are_read_when_needed_are_finite(served, expected, count):
    data, told = served(), {}
    data.setup()
    for split in ("train", "val", "test"):
        try:
            list(getattr(data, f"{split}_dataloader")())
        except UserError as error:
            told[split] = str(error)
    assert set(told.values()) == {"Files: sample 43 contains NaN or infinity: fix or remove it."}
    assert expected <= set(told)
    assert len(told) == count  # the sample is in the training part or, divided from it, in another one
