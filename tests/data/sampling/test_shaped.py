"""Episodes of uneven size: right labels, nothing twice, the same in any company."""

import numpy as np
import pytest
import torch
from scipy import stats

from metatransfer import Episode, ImbalancedShots, MetaDatasetShape, SemiSupervised, TensorSource, UserError
from metatransfer.batches import episodes_of
from metatransfer.data import EpisodeSize, FixedShape
from metatransfer.data.sampling.episodes import EpisodeSampler, ShapedSampler

SIZES = [30, 4, 17, 60, 25, 9, 12]
CPU = torch.device("cpu")


def source(sizes=SIZES, groups=None):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    return TensorSource(
        torch.arange(len(labels)).float().unsqueeze(1), labels, [f"c{i}" for i in range(len(sizes))], "S", groups
    )


def one(sampler, indices):
    [drawn] = sampler.draw(indices)
    return drawn


SHAPES = [
    (MetaDatasetShape(min_ways=3), EpisodeSize(6, 20, 5)),
    (ImbalancedShots(1, 3, "random"), EpisodeSize(4, 1, 1)),
    (ImbalancedShots(1, 2, "linear"), EpisodeSize(4, 1, 1)),
    (SemiSupervised(2, 1), EpisodeSize(3, 1, 1)),
]


def sampler(shape, size, **options):
    return ShapedSampler(source(), "train", 3, size, shape=shape, **options)


@pytest.mark.parametrize(("shape", "size"), SHAPES, ids=lambda value: type(value).__name__)
def test_labels_are_right_and_nothing_comes_twice(shape, size):
    draw = sampler(shape, size)
    labels = draw.source.labels
    tasks = [one(draw, np.array([index])) for index in range(300)]
    for drawn in tasks:
        classes = drawn.classes[0]
        assert len(set(classes.tolist())) == len(classes)
        unlabelled = drawn.unlabelled[0] if drawn.unlabelled is not None else np.empty(0, np.int64)
        every = np.concatenate([drawn.support[0], drawn.query[0], unlabelled])
        assert len(set(every.tolist())) == len(every)
        for part in ("support", "query"):
            y = getattr(drawn, f"{part}_y")[0]
            assert (labels[getattr(drawn, part)[0]] == classes[y]).all()
            assert set(y.tolist()) == set(range(len(classes)))
    assert (tasks[0].unlabelled is not None) == isinstance(shape, SemiSupervised)


@pytest.mark.parametrize(("shape", "size"), SHAPES, ids=lambda value: type(value).__name__)
def test_an_episode_does_not_depend_on_its_company(shape, size):
    draw = sampler(shape, size)
    indices = np.array([7, 0, 10**12, 3])
    together = [
        [None if part is None else part[row : row + 1] for part in drawn]
        for drawn in draw.draw(indices)
        for row in range(len(drawn.keys))
    ]
    for index, task in zip(indices, together, strict=True):
        alone = one(draw, np.array([index]))
        for left, right in zip(alone, task, strict=True):
            assert (left is None and right is None) or np.array_equal(left, right)
    assert not np.array_equal(one(draw, np.array([1])).query, one(draw, np.array([2])).query)


def test_tasks_of_one_size_are_one_episode():
    served = sampler(ImbalancedShots(1, 2, "linear"), EpisodeSize(4, 1, 1)).batch(np.arange(5), CPU)
    assert isinstance(served, Episode)
    assert served.support_x.shape == (5, 6, 1)
    served = sampler(*SHAPES[0]).batch(np.arange(5), CPU)
    assert isinstance(served, list)
    assert [episode.support_x.shape[0] for episode in served] == [1] * 5
    assert len({episode.support_x.shape for episode in served}) > 1
    assert [len(episodes_of(one)) for one in (served, served[0])] == [5, 1]


def test_distractors_are_of_other_classes_and_have_no_label():
    draw = sampler(SemiSupervised(2, 1), EpisodeSize(3, 1, 1))
    for index in range(200):
        drawn = one(draw, np.array([index]))
        counts = np.bincount(draw.source.labels[drawn.unlabelled[0]], minlength=len(SIZES))
        strangers = set(np.flatnonzero(counts)) - set(drawn.classes[0])
        assert len(strangers) == 1
        assert sorted(counts[counts > 0].tolist()) == [2] * 4
    episode = draw.batch(np.array([0]), CPU)
    assert episode.unlabelled_x.shape == (1, 8, 1)
    assert (episode.unlabelled_x.long().flatten().numpy() == one(draw, np.array([0])).unlabelled[0]).all()


def test_classes_and_samples_are_uniform():
    draw = sampler(FixedShape(), EpisodeSize(2, 2, 1))
    drawn = one(draw, np.arange(6000))
    assert stats.chisquare(np.bincount(drawn.classes.reshape(-1), minlength=len(SIZES))).pvalue > 1e-4
    # within a class every sample is as likely
    of_class = np.concatenate([drawn.support, drawn.query], axis=1)
    of_class = of_class[draw.source.labels[of_class] == 5]
    counts = np.bincount(draw.source.order.argsort()[of_class] - draw.source.offsets[5], minlength=9)
    assert stats.chisquare(counts).pvalue > 1e-4


def test_a_position_gives_no_label_away():
    draw = sampler(ImbalancedShots(1, 2, "linear"), EpisodeSize(4, 1, 1))
    first = one(draw, np.arange(3000)).query_y[:, 0]
    assert stats.chisquare(np.bincount(first, minlength=4)).pvalue > 1e-4


def test_within_groups():
    groups = ["a", "a", "a", "b", "b", "b", "b"]
    draw = ShapedSampler(
        source(groups=groups), "test", 0, EpisodeSize(6, 20, 5), shape=MetaDatasetShape(3), within_groups=True
    )
    ways = set()
    for index in range(300):
        classes = one(draw, np.array([index])).classes[0]
        assert len({groups[one] for one in classes}) == 1
        ways.add((groups[classes[0]], len(classes)))
    assert ways == {("a", 3), ("b", 3), ("b", 4)}
    with pytest.raises(UserError, match="no group has the 5 classes"):
        ShapedSampler(
            source(groups=groups), "test", 0, EpisodeSize(6, 20, 5), shape=MetaDatasetShape(5), within_groups=True
        )


def test_turns_and_augmentation_of_uneven_tasks():
    images = TensorSource(torch.rand(60, 1, 6, 6), np.arange(60) % 6, [str(i) for i in range(6)], "I")
    size = EpisodeSize(4, 1, 2)
    draw = ShapedSampler(images, "train", 0, size, shape=ImbalancedShots(1, 4, "random"), turn_classes=True)
    for index in range(20):
        drawn = one(draw, np.array([index]))
        episode = draw.batch(np.array([index]), CPU)
        for position, (sample, label) in enumerate(zip(drawn.support[0], drawn.support_y[0], strict=True)):
            turned = torch.rot90(images.data[sample], int(drawn.turns[0, label]), (-2, -1))
            assert episode.support_x[0, position].equal(turned)


def test_fixed_shape_agrees_with_the_plain_sampler_in_shape():
    even = EpisodeSampler(source([9] * 5), "train", 0, EpisodeSize(3, 2, 4)).batch(np.arange(4), CPU)
    shaped = ShapedSampler(source([9] * 5), "train", 0, EpisodeSize(3, 2, 4), shape=FixedShape()).batch(
        np.arange(4), CPU
    )
    assert [one.shape for one in even[:4]] == [one.shape for one in shaped[:4]]
