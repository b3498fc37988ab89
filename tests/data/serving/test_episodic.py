"""The data module without a Trainer: which episodes are served to whom, and that nothing else matters."""

import pickle
import types

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from metatransfer import ClassBatches, EpisodicDataModule, Glyphs, Processing
from metatransfer.batches import episodes_of
from metatransfer.data import (
    Augmentation,
    EpisodeSize,
    MetaDatasetShape,
    RandomAffine,
    SemiSupervised,
    Source,
    TensorSource,
    TorchvisionTransforms,
)
from metatransfer.data.sampling.episodes import EpisodeSampler
from metatransfer.data.sampling.loader import BatchLoader, Place
from metatransfer.data.sources import SPLITS, LazyParts
from metatransfer.errors import UserError
from serving_by_names import Given, episodic

CPU = torch.device("cpu")
SIZES = {"train": [9, 12, 7, 8, 20, 7], "val": [9, 9, 9], "test": [8, 8, 8, 8]}
SMALL = {
    "num_ways": 3, "num_shots": 2, "num_queries": 3, "per_batch": 4,
    "train_episodes": 12, "val_episodes": 6, "test_episodes": 9,
}  # fmt: skip


def samples(split, shape=(1, 6, 6)):
    sizes = SIZES[split]
    generator = torch.Generator().manual_seed(len(split))
    data = torch.randint(0, 256, (sum(sizes), *shape), generator=generator).to(torch.uint8)
    return data, np.repeat(np.arange(len(sizes)), sizes), [f"{split}{i}" for i in range(len(sizes))]


class Lazy(Source):
    """Reads one sample at a time, as from files."""

    def __init__(self, split):
        self.data, labels, names = samples(split)
        super().__init__(labels, names, "Lazy")

    @property
    def sample_shape(self):
        return tuple(self.data.shape[1:])

    def read(self, indices, device):
        flat = torch.stack([self.data[int(i)].float() / 255 for i in indices.reshape(-1)])
        return flat.view(*indices.shape, *self.sample_shape).to(device)


def in_memory(split):
    return TensorSource(*samples(split), f"Toys {split}")


class Toys(Given):
    """Three splits with classes of their own, made by ``source(split)`` when asked for."""

    def __init__(self, source=in_memory):
        super().__init__(LazyParts(source, SPLITS), divided_by="class")


class Noise(Augmentation):
    num_random = 3

    def __call__(self, x, u):
        return x + u.mean(1).view(-1, 1, 1, 1)


def toys(kind=in_memory, **changes):
    data = episodic(Toys(kind), **{**SMALL, **changes})
    data.setup()
    return data


def loader(data, split="train", epoch=0, done=0, per_batch=None, rank=0, world_size=1):
    place = Place(rank, world_size, lambda: (epoch, done))
    return BatchLoader(
        data.open(split), data.num_episodes[split], per_batch or data.tasks_per_batch,
        drop_last=split == "train", place=place, num_workers=data.num_workers,
    )  # fmt: skip


def flat(batches):
    """All episodes of a pass, one after the other, as comparable bytes."""
    return [
        tuple(None if part is None else part[t].numpy().tobytes() for part in episode)
        for batch in batches
        for episode in episodes_of(batch)
        for t in range(len(episode.query_y))
    ]


UNEVEN = {"shape": MetaDatasetShape(min_ways=2), "num_ways": 4, "num_shots": 9, "eval_num_ways": 3}
UNLABELLED = {"shape": SemiSupervised(1, 0), "num_shots": 1}
FLIPS = {"augmentation": TorchvisionTransforms([v2.RandomHorizontalFlip(), v2.RandomRotation(20)])}
SETTINGS = [{}, UNEVEN, UNLABELLED, FLIPS]
every_setting = pytest.mark.parametrize("setting", SETTINGS, ids=["even", "uneven", "unlabelled", "flips"])


def test_shapes_and_types_of_what_is_served():
    data = toys(eval_num_shots=1, eval_num_queries=2)
    batch = next(iter(data.train_dataloader()))
    assert batch.support_x.shape == (4, 6, 1, 6, 6)
    assert batch.query_x.shape == (4, 9, 1, 6, 6)
    assert batch.support_y.shape == (4, 6)
    assert batch.query_y.shape == (4, 9)
    assert batch.support_x.dtype == torch.float32
    assert batch.support_y.dtype == torch.int64
    assert 0 <= batch.support_x.min() <= batch.support_x.max() <= 1
    evaluation = next(iter(data.test_dataloader()))
    assert evaluation.support_x.shape == (4, 3, 1, 6, 6)
    assert evaluation.query_x.shape == (4, 6, 1, 6, 6)


def test_lengths_and_the_last_batch():
    data = toys(train_episodes=11)
    assert len(data.train_dataloader()) == 2
    assert [len(batch.query_y) for batch in data.train_dataloader()] == [4, 4]
    assert len(data.val_dataloader()) == 2
    assert [len(batch.query_y) for batch in data.val_dataloader()] == [4, 2]
    assert [len(batch.query_y) for batch in data.test_dataloader()] == [4, 4, 1]


def test_samples_carry_the_label_of_their_class():
    data = toys()
    sampler = data.open("val")
    [drawn] = sampler.draw(np.arange(6))
    batch = sampler.batch(np.arange(6), CPU)
    for t in range(6):
        for x, y in zip(batch.query_x[t], batch.query_y[t], strict=True):
            [index] = torch.where((sampler.source.data.float() / 255 == x).flatten(1).all(1))[0].tolist()
            assert sampler.source.labels[index] == drawn.classes[t][y]


def test_every_training_epoch_has_new_episodes_and_evaluation_the_same():
    data = toys()
    epochs = [flat(loader(data, epoch=epoch)) for epoch in range(5)]
    assert len({episode for epoch in epochs for episode in epoch}) == 60
    assert flat(data.val_dataloader()) == flat(data.val_dataloader()) == flat(toys().val_dataloader())
    assert flat(loader(data, epoch=3)) == epochs[3]


def test_seeds_give_other_episodes_in_every_split():
    one, two = toys(), toys(seed=1)
    for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
        assert not set(flat(getattr(one, name)())) & set(flat(getattr(two, name)()))


@pytest.mark.grid(3)
@every_setting
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_processes_share_the_training_episodes(world_size, setting):
    data = toys(train_episodes=26, **setting)
    ranks = [loader(data, epoch=2, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert {len(one) for one in ranks} == {26 // (4 * world_size)}
    served = [flat(one) for one in ranks]
    assert len({len(one) for one in served}) == 1
    together = [episode for one in served for episode in one]
    assert len(set(together)) == len(together)
    whole = flat(loader(data, epoch=2, per_batch=1))
    assert set(together) <= set(whole)
    # the optimiser step k of all processes together is of the same episodes as in one process with larger batches
    large = loader(data, epoch=2, per_batch=4 * world_size)
    for step, batch in enumerate(large):
        parts = [episode for one in served for episode in one[4 * step : 4 * step + 4]]
        assert sorted(parts) == sorted(flat([batch]))


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_processes_share_the_evaluation_episodes(world_size):
    data = toys()
    served = [flat(loader(data, "test", rank=rank, world_size=world_size)) for rank in range(world_size)]
    together = [episode for one in served for episode in one]
    assert len(together) == 9
    assert sorted(together) == sorted(flat(data.test_dataloader()))
    for rank in range(world_size):
        one = loader(data, "test", rank=rank, world_size=world_size)
        assert len(one) == len(list(one))


def test_more_processes_than_episodes():
    data = toys()
    served = [list(loader(data, "val", rank=rank, world_size=8)) for rank in range(8)]
    assert sum(len(flat(one)) for one in served) == 6


@every_setting
def test_a_pass_resumes_where_it_stood(setting):
    data = toys(**setting)
    assert flat(loader(data, epoch=1, done=2)) == flat(loader(data, epoch=1))[8:]
    assert flat(loader(data, epoch=1, done=3)) == []
    assert len(loader(data, epoch=1, done=2)) == 3


@every_setting
def test_batch_size_does_not_change_the_episodes(setting):
    one, six = (toys(per_batch=size, **setting) for size in (1, 6))
    assert flat(one.train_dataloader()) == flat(six.train_dataloader())


def test_single_episodes_are_those_of_the_pass():
    data = toys()
    served = flat(data.test_dataloader())
    assert [flat([data.episode("test", index)])[0] for index in range(9)] == served


def test_sources_of_any_kind_give_the_same_episodes():
    assert flat(toys().train_dataloader()) == flat(toys(Lazy).train_dataloader())


@pytest.mark.grid(3)
@pytest.mark.parametrize("num_workers", [2, 4])
@pytest.mark.parametrize("setting", [*SETTINGS, {"augmentation": Noise()}])
def test_workers_do_not_change_the_episodes(setting, num_workers):
    alone = toys(Lazy, **setting)
    with_workers = toys(Lazy, **setting, num_workers=num_workers)
    batches = list(with_workers.train_dataloader())
    assert setting is UNEVEN or (batches[0].unlabelled_x is not None) == (setting is UNLABELLED)
    assert flat(batches) == flat(alone.train_dataloader())
    if not setting:
        assert flat(with_workers.val_dataloader()) == flat(alone.val_dataloader())


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("kind", [in_memory, Lazy])
def test_loading_draws_no_global_random_number(kind, num_workers):
    """The weights' and the dropout's random numbers must not depend on the number of workers."""
    data = toys(kind, num_workers=num_workers, augmentation=Noise())
    torch.manual_seed(0)
    np.random.seed(0)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    list(data.train_dataloader())
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()


@pytest.mark.parametrize("augmentation", [Noise(), RandomAffine(30, 0.1, 0.2, 0.2)])
def test_augmentation_is_reproducible_and_does_not_depend_on_company(augmentation):
    data, plain = toys(augmentation=augmentation), toys()
    first = list(data.train_dataloader())
    assert flat(first) == flat(toys(augmentation=augmentation).train_dataloader())
    alone = list(loader(data, per_batch=1))
    together = torch.cat([batch.support_x for batch in first])
    torch.testing.assert_close(torch.cat([batch.support_x for batch in alone]), together, rtol=0, atol=1e-6)
    unchanged = list(plain.train_dataloader())
    for changed, original in zip(first, unchanged, strict=True):
        assert torch.equal(changed.support_y, original.support_y)
        for part in ("support_x", "query_x"):
            difference = (getattr(changed, part) - getattr(original, part)).abs().flatten(2).amax(2)
            assert (difference > 0).all()  # every single sample


def test_every_sample_gets_its_own_random_numbers_in_the_unit_interval():
    seen = []

    class Spy(Noise):
        def __call__(self, x, u):
            seen.append(u)
            return x

    list(toys(augmentation=Spy()).train_dataloader())
    u = torch.cat(seen)
    assert u.shape == (12 * (6 + 9), 3)
    assert u.dtype == torch.float32
    assert 0 <= u.min() < u.max() < 1
    assert len(torch.unique(u)) > 0.99 * u.numel()


def test_evaluation_is_not_augmented():
    assert flat(toys(augmentation=Noise()).val_dataloader()) == flat(toys().val_dataloader())
    assert flat([toys(augmentation=Noise()).episode("train", 0)]) == flat([toys().episode("train", 0)])


def test_the_trainer_says_rank_world_and_position():
    data = toys(train_episodes=24)
    current = types.SimpleNamespace(ready=1)
    progress = types.SimpleNamespace(batch_progress=types.SimpleNamespace(current=current))
    data.trainer = types.SimpleNamespace(
        overfit_batches=0, global_rank=1, world_size=2, current_epoch=5,
        fit_loop=types.SimpleNamespace(epoch_loop=progress),
        strategy=types.SimpleNamespace(root_device=CPU),
    )  # fmt: skip
    served = flat(data.train_dataloader())
    assert served == flat(loader(toys(train_episodes=24), epoch=5, rank=1, world_size=2))[4:]
    assert flat(data.val_dataloader()) == flat(loader(toys(), "val", rank=1, world_size=2))
    data.trainer.overfit_batches = 2  # the same episodes again and again, as asked for
    assert flat(data.train_dataloader()) == flat(loader(toys(train_episodes=24), epoch=0, rank=1, world_size=2))


def test_setup_opens_what_the_stage_needs_once():
    opened = []

    def counting(split):
        opened.append(split)
        return in_memory(split)

    data = episodic(Toys(counting), **SMALL)
    data.setup("fit")
    data.setup("fit")
    data.setup("validate")
    assert opened == ["train", "val"]
    data.test_dataloader()
    assert opened == ["train", "val", "test"]


def test_loaders_open_what_they_need_without_a_trainer():
    assert len(episodic(Toys(), **SMALL).train_dataloader()) == 3
    assert len(episodic(Toys(), **SMALL).test_dataloader()) == 3
    # the training episodes alone are impossible
    assert len(episodic(Toys(), **{**SMALL, "num_ways": 7, "eval_num_ways": 3}).val_dataloader()) == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_ways": 7, "eval_num_ways": 3}, ["Toys (train split)", "6 classes", "7-way"]),
        ({"eval_num_ways": 4}, ["Toys (val split)", "3 classes", "eval_task.num_ways"]),
        (
            {"num_shots": 5, "eval_num_shots": 1},
            ["Toys (train split)", "'train2'", "7 samples", "5-shot episodes with 3 queries"],
        ),
        ({"eval_num_queries": 8}, ["Toys (val split)", "'val0'", "9 samples"]),
    ],
)
def test_impossible_episodes(changes, words):
    with pytest.raises(UserError) as caught:
        toys(**changes)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("name", [*SMALL, "eval_num_ways", "eval_num_shots", "eval_num_queries", "val_fraction"])
def test_numbers_below_one(name):
    with pytest.raises(UserError, match=r" must be (a whole number from 1 to \d+|above 0 and below 1), but is 0"):
        episodic(Toys(), **{**SMALL, name: 0})


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: toys(num_workers=-1), ["num_workers must be a whole number from 0 to 1000", "-1"]),
        (lambda: toys(seed=-1), ["seed must be a whole number"]),
        (lambda: toys(train_episodes=3).train_dataloader(), ["episodes.train=3", "episodes.per_batch=4 in each of 1"]),
        (lambda: toys(mix=v2.MixUp()), ["processing.mix", "leave it out"]),
        (lambda: EpisodicDataModule(source=3), ["source must be a collection", "type int"]),
        (lambda: toys().setup("predict"), ["--data.predict.support", "--data.predict.query"]),
        (lambda: toys().collection.convert(None), ["Toys cannot convert image files"]),
        (lambda: episodic(Given({"other": 1})).open("train"), ["Given.parts must return", "other"]),
        (lambda: episodic(Given({one: in_memory(one) for one in ("train", "val")})).open("test"), ["no test split"]),
    ],
)  # fmt: skip
def test_one_sentence(build, words):
    with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
        build()
    assert all(word in str(caught.value) for word in words), caught.value


def test_protocol_is_plain():
    card = toys(eval_num_shots=1, seed=3).protocol()
    assert card["data"] == "Toys"
    assert card["train_episode"] == {"num_ways": 3, "num_shots": 2, "num_queries": 3}
    assert card["eval_episode"] == {"num_ways": 3, "num_shots": 1, "num_queries": 3}
    assert card["episodes"] == {"train": 12, "val": 6, "test": 9}
    assert card["episode_seed"] == 3
    assert card["split"] == "as given"
    assert toys().protocol() != toys(augmentation=RandomAffine()).protocol()


def test_training_may_have_a_seed_of_its_own():
    same, other, unlike = (toys(seed=seed, train_seed=own) for seed, own in ((3, None), (3, 4), (4, None)))
    shown = {name: {split: flat(loader(data, split)) for split in SPLITS} for name, data in
             {"same": same, "other": other, "unlike": unlike}.items()}  # fmt: skip
    assert shown["other"] == {**shown["same"], "train": shown["unlike"]["train"]}
    assert shown["same"]["train"] != shown["unlike"]["train"]
    assert other.protocol()["episode_seed"] == {"train": 4, "val": 3, "test": 3}
    with pytest.raises(UserError, match=r"episodes\.train_seed must be"):
        toys(train_seed=-1)


def test_info():
    info = toys().info()
    assert (info.sample_shape, info.num_ways, info.num_outputs, info.class_names) == ((1, 6, 6), 3, 3, ())
    opened = []
    glyphs = Glyphs()
    glyphs.parts = lambda: opened.append(1) or {"train": None}
    assert EpisodicDataModule(glyphs, processing=Processing(transform=[v2.Resize(14)])).info().sample_shape == (
        1,
        14,
        14,
    )


def test_samplers_can_be_sent_to_workers():
    sampler = EpisodeSampler(Lazy("val"), "val", 0, EpisodeSize(2, 1, 1))
    again = pickle.loads(pickle.dumps(sampler))
    [one], [two] = sampler.draw(np.arange(4)), again.draw(np.arange(4))
    assert (one.support == two.support).all()
    assert (one.query_y == two.query_y).all()


# ---- who divides


def classes(count, start=0, each=9, name="all"):
    labels = np.arange(count).repeat(each)
    x = (1000 * (start + labels) + np.tile(np.arange(each), count)).astype(np.float32)
    return TensorSource(torch.from_numpy(x)[:, None], labels, [f"c{start + i}" for i in range(count)], name)


def drawn_classes(data, split):
    return {data.open(split).source.class_names[one] for one in data.episode(split, 0).classes[0]} | set(
        data.open(split).source.class_names
    )


def test_undivided_classes_are_divided_at_random_and_the_same_for_every_seed_of_episodes():
    one, two, other = (
        episodic(Given({"all": classes(20)}), num_ways=3, num_queries=2, **options)
        for options in ({}, {"seed": 5}, {"division_seed": 5})
    )
    found = {split: drawn_classes(one, split) for split in SPLITS}
    assert [len(found[split]) for split in SPLITS] == [12, 4, 4]
    assert set.union(*found.values()) == set(classes(20).class_names)
    assert {split: drawn_classes(two, split) for split in SPLITS} == found
    assert {split: drawn_classes(other, split) for split in SPLITS} != found
    assert one.protocol()["split"] == "classes at random, seed 0, 0.2 val, 0.2 test"


def test_splits_of_equal_classes_are_pooled_and_divided_by_class(caplog):
    parts = {"train": classes(12, each=6), "test": classes(12, each=3)}
    data = episodic(Given(parts), num_ways=3, num_shots=2, num_queries=4)
    with caplog.at_level("INFO"):
        data.setup(None)
    assert "Given: train and test have the same classes" in caplog.text
    assert set(data.open("train").source.sizes.tolist()) == {9}
    assert not drawn_classes(data, "train") & drawn_classes(data, "test")
    assert data.protocol()["split"].startswith("train, test pooled, then classes at random, seed 0")


def test_splits_that_share_some_classes_are_an_error():
    parts = {"train": classes(6), "test": classes(6, start=3)}
    with pytest.raises(UserError, match=r"has 3 classes without any training sample .'c6'., but shares others"):
        episodic(Given(parts), num_ways=2, num_queries=2).setup("fit")


def test_too_few_classes_for_three_splits():
    with pytest.raises(UserError, match="all has 8 classes, but three splits need 3 \\+ 3 \\+ 3 = 9"):
        episodic(Given({"all": classes(8)}), num_ways=3, num_queries=2).setup("fit")


def test_numbers_as_targets_are_an_error_everywhere():
    parts = {"all": TensorSource(torch.zeros(9, 2), torch.zeros(9, 1), (), "heights")}
    for build in (episodic, lambda source: ClassBatches(episodic(source))):
        with pytest.raises(UserError, match="heights has numbers as targets, but classes are needed"):
            build(Given(parts)).setup("fit")
