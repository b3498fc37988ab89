"""The training split as labelled batches: each sample once an epoch, whoever asks."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from metatransfer import (
    Arrays,
    Augmentation,
    ClassBatches,
    CrossDomainEpisodes,
    EpisodicDataModule,
    Glyphs,
    LabelledBatch,
    RandomAffine,
    Sinusoids,
    UserError,
)
from serving_by_names import episodic


def arrays(classes=12, samples=6, **options):
    """Images whose pixels say which sample they are."""
    count = classes * samples
    x = np.arange(count, dtype=np.uint8)[:, None, None, None].repeat(4, -1).repeat(4, -2)
    y = np.arange(count) // samples
    split = np.where(y < 6, "train", np.where(y < 9, "val", "test"))
    options = {"num_ways": 2, "num_shots": 1, "num_queries": 2, "eval_num_queries": 2} | options
    return episodic(Arrays.from_arrays(x, y, split=split), **options)


def numbers(batches):
    return [(batch.x[:, 0, 0, 0] * 255).round().int().tolist() for batch in batches]


def order(batches):
    return [number for batch in numbers(batches) for number in batch]


def of_epoch(data, epoch, batch=0, rank=0, world=1, overfit=0):
    progress = SimpleNamespace(batch_progress=SimpleNamespace(current=SimpleNamespace(ready=batch)))
    data.trainer = SimpleNamespace(
        global_rank=rank, world_size=world, current_epoch=epoch, overfit_batches=overfit, is_global_zero=True,
        fit_loop=SimpleNamespace(epoch_loop=progress), strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )  # fmt: skip
    return list(data.train_dataloader())


def test_a_batch_is_samples_with_their_own_labels():
    batches = of_epoch(ClassBatches(arrays(), batch_size=6), 0)
    assert len(batches) == 6
    for batch, shown in zip(batches, numbers(batches), strict=True):
        assert isinstance(batch, LabelledBatch)
        assert batch.x.dtype == torch.float32
        assert batch.x.shape == (6, 1, 4, 4)
        assert batch.y.dtype == torch.int64
        assert batch.y.tolist() == [number // 6 for number in shown]


def test_every_epoch_has_every_sample_once_in_another_order():
    data = ClassBatches(arrays(), batch_size=6)
    first, second = (order(of_epoch(data, epoch)) for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(36))
    assert first != second
    assert order(of_epoch(ClassBatches(arrays(), batch_size=9), 0)) == first  # whatever the batch
    assert order(of_epoch(ClassBatches(arrays(seed=1), batch_size=6), 0)) != first
    assert order(of_epoch(data, 1, overfit=1)) == first


def test_processes_share_an_epoch():
    whole = numbers(of_epoch(ClassBatches(arrays(), batch_size=12), 2))
    parts = [numbers(of_epoch(ClassBatches(arrays(), batch_size=6), 2, rank=rank, world=2)) for rank in range(2)]
    for together, one, two in zip(whole, *parts, strict=True):
        assert not set(one) & set(two)
        assert sorted(together) == sorted(one + two)


def test_a_resumed_epoch_goes_on_with_the_next_batch():
    data = ClassBatches(arrays(), batch_size=6)
    assert numbers(of_epoch(data, 3, batch=4)) == numbers(of_epoch(data, 3))[4:]


def test_a_last_batch_that_is_not_full_is_left_out():
    assert [len(batch.y) for batch in of_epoch(ClassBatches(arrays(), batch_size=10), 0)] == [10, 10, 10]


class Shift(Augmentation):
    num_random = 1

    def __call__(self, x, u):
        return x + u.view(-1, 1, 1, 1)


def test_augmentation_has_numbers_of_its_own_for_every_sample_and_epoch():
    plain, changed = (ClassBatches(arrays(augmentation=how), batch_size=6) for how in (None, Shift()))

    def shifts(epoch):
        pairs = zip(of_epoch(changed, epoch), of_epoch(plain, epoch), strict=True)
        return torch.cat([(one.x - two.x)[:, 0, 0, 0] for one, two in pairs])

    assert len(shifts(0).unique()) == 36
    assert not torch.equal(shifts(0), shifts(1))
    torch.testing.assert_close(shifts(0), shifts(0), rtol=0, atol=0)
    # the same whatever process asks
    half = of_epoch(ClassBatches(arrays(augmentation=Shift()), batch_size=3), 0, rank=1, world=2)[0]
    torch.testing.assert_close(half.x, of_epoch(changed, 0)[0].x[1::2])


def test_transforms_come_last():
    data = arrays(augmentation=RandomAffine(), transform=[v2.Normalize(mean=[0.5], std=[0.5])])
    batch = of_epoch(ClassBatches(data, batch_size=36), 0)[0]
    assert batch.x.min() == -1  # what the affine map leaves empty is 0 before it
    assert ClassBatches(data).info().sample_shape == (1, 4, 4)


@pytest.mark.parametrize("rotations", ["classes", "per_class", {"train": "classes"}])
def test_rotations_make_four_classes_of_each(rotations):
    data = ClassBatches(arrays(rotations=rotations), batch_size=36)
    assert data.info().num_classes == 24
    assert len(data.train_dataloader()) == 4


def test_more_queries_than_the_training_classes_have_samples_are_no_matter():
    data = ClassBatches(arrays(num_shots=5, num_queries=15, eval_num_shots=1), batch_size=6)
    data.setup("fit")
    assert len(data.train_dataloader()) == 6
    assert data.episode("val", 0).query_x.shape == (1, 4, 1, 4, 4)


def test_evaluation_is_that_of_the_data_module_inside():
    inside, data = arrays(), ClassBatches(arrays())
    for one in (inside, data):
        one.setup("test")
    assert torch.equal(inside.episode("test", 3).query_x, data.episode("test", 3).query_x)
    for one, two in zip(inside.test_dataloader(), data.test_dataloader(), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one[:5], two[:5], strict=True))
    card, plain = data.protocol(), inside.protocol()
    assert card["eval_episode"] == plain["eval_episode"]
    assert card["data"] == "Arrays"
    assert "train_episode" not in card
    assert data.info().num_classes == 6
    assert data.protocol()["train_batches"] == {"batch_size": 64, "classes": 6, "samples": 36}
    assert data.info().class_counts == (6,) * 6


def test_around_several_sources():
    data = ClassBatches(CrossDomainEpisodes(arrays(), {"one": arrays(), "two": arrays(seed=5)}), batch_size=6)
    data.setup(None)
    assert data.info().test_names == ("one", "two")
    assert data.info().num_classes == 6
    assert len(data.test_dataloader()) == 2
    assert data.episode("test", 0, "two").query_x.shape == (1, 4, 1, 4, 4)
    assert data.protocol()["train_batches"]["classes"] == 6


def test_glyphs():
    data = ClassBatches(EpisodicDataModule(Glyphs()))
    assert data.info().num_classes == 1552
    assert data.info().sample_shape == (1, 28, 28)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: ClassBatches(EpisodicDataModule(Sinusoids())).info(), "Sinusoids generates its tasks"),
        (lambda: ClassBatches([1, 2]), "must be a data module of episodes, .* but is of type list"),
        (lambda: ClassBatches(ClassBatches(EpisodicDataModule(Glyphs()))), "but is of type ClassBatches"),
        (
            lambda: ClassBatches(EpisodicDataModule(Glyphs()), batch_size=0),
            "batch_size must be a whole number from 1 to 1000000, but is 0",
        ),
        (
            lambda: of_epoch(ClassBatches(arrays(), batch_size=4), 0, world=37),
            "there are 36 training samples for 37 processes: use fewer processes",
        ),
    ],
)
def test_one_sentence(build, words):
    with pytest.raises(UserError, match=words) as caught:
        build()
    assert "\n" not in str(caught.value)
