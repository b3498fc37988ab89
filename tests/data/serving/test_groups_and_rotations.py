"""Episodes within a group, and rotations as classes or per class."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from metatransfer import MetaDatasetShape, TensorSource, UserError
from metatransfer.data import EpisodeSize, FixedShape
from metatransfer.data.sampling.episodes import EpisodeSampler, ShapedSampler
from metatransfer.data.sources import SPLITS, RotatedClasses, rotate
from serving_by_names import Given, episodic

IMAGES = (torch.arange(6 * 4 * 9, dtype=torch.float32) % 255).to(torch.uint8).view(24, 1, 3, 3)
LABELS = np.arange(6).repeat(4)
NAMES = [f"class {index}" for index in range(6)]
GROUPS = ["a", "b", "a", "b", "b", "c"]
CPU = torch.device("cpu")


def one(sampler, indices):
    [drawn] = sampler.draw(indices)
    return drawn


def source(groups=None):
    return TensorSource(IMAGES.clone(), LABELS, NAMES, "toy", groups)


def toy(rotation="none", grouped=False, **options):
    parts = dict.fromkeys(SPLITS, source(GROUPS))
    own = Given(parts, divided_by="class", rotations=dict.fromkeys(SPLITS, rotation), within_groups=grouped)
    return episodic(own, num_ways=2, num_queries=2, **options)


def test_rotated_classes_are_turned_copies():
    turned = RotatedClasses(source(GROUPS))
    assert len(turned.class_names) == 24
    assert turned.class_names[5] == "class 1 turned 90"
    assert turned.groups[:5] == ("a", "a", "a", "a", "b")
    assert (turned.sizes == 4).all()
    for index in range(len(turned)):
        original = IMAGES[index // 4].float() / 255
        expected = torch.rot90(original, index % 4, (1, 2))
        torch.testing.assert_close(turned.read(torch.tensor([index]), CPU)[0], expected)
        assert turned.labels[index] == 4 * LABELS[index // 4] + index % 4


def test_rotate_each_by_its_own():
    images = torch.rand(2, 4, 3, 5, 5)
    turns = torch.tensor([[0, 1, 2, 3], [3, 0, 0, 2]])
    expected = torch.stack(
        [torch.stack([torch.rot90(images[i, j], int(turns[i, j]), (1, 2)) for j in range(4)]) for i in range(2)]
    )
    torch.testing.assert_close(rotate(images.clone(), turns), expected)


def test_only_square_images_can_be_rotated():
    with pytest.raises(UserError, match=r"only square images \(C, H, H\) can be rotated, but samples are \(1, 3, 4\)"):
        RotatedClasses(TensorSource(torch.zeros(2, 1, 3, 4), [0, 1], ["a", "b"], "oblong"))


@pytest.mark.parametrize(("kind", "shape"), [(EpisodeSampler, FixedShape()), (ShapedSampler, MetaDatasetShape(3))])
def test_only_groups_with_enough_classes_are_drawn(kind, shape):
    """Of groups with 4, 2, 3 and 1 classes, three-way episodes use the first and the third, equally often."""
    groups = ["a", "b", "a", "c", "b", "a", "c", "d", "c", "a"]
    data = TensorSource(torch.zeros(80, 1), np.arange(80) % 10, [str(number) for number in range(10)], "toy", groups)
    sampler = kind(data, "train", 0, EpisodeSize(3, 1, 1), shape=shape, within_groups=True)
    drawn = [np.concatenate([one.classes for one in sampler.draw(np.array([index]))])[0] for index in range(300)]
    assert all(len(set(classes)) == 3 for classes in drawn)
    of_group = [{groups[number] for number in classes} for classes in drawn]
    assert all(len(one) == 1 for one in of_group)
    counts = [of_group.count({name}) for name in "abcd"]
    assert counts[1] == counts[3] == 0
    assert min(counts[0], counts[2]) > 120
    assert {number for classes in drawn for number in classes} == {0, 2, 5, 9, 3, 6, 8}


def test_per_class_rotation_is_the_same_for_a_class_in_its_episode_and_all_four_occur():
    data, plain = toy("per_class"), toy("none")
    data.setup("test")
    plain.setup("test")
    seen = set()
    for index in range(40):
        turned, upright = data.episode("test", index), plain.episode("test", index)
        assert torch.equal(turned.support_y, upright.support_y)
        drawn = one(data.open("test"), np.array([index]))
        for x, y, original in (
            (turned.support_x[0], turned.support_y[0], upright.support_x[0]),
            (turned.query_x[0], turned.query_y[0], upright.query_x[0]),
        ):
            for image, label, before in zip(x, y.tolist(), original, strict=True):
                turn = int(drawn.turns[0, label])
                seen.add(turn)
                torch.testing.assert_close(image, torch.rot90(before, turn, (1, 2)))
    assert seen == {0, 1, 2, 3}


def test_classes_rotation_in_a_data_module():
    data = toy("classes")
    data.setup("fit")
    assert len(data.open("train").source.class_names) == 24
    assert next(iter(data.train_dataloader())).support_x.shape == (16, 2, 1, 3, 3)


def test_within_groups_every_episode_stays_in_one_and_groups_are_equally_likely():
    sampler = EpisodeSampler(source(GROUPS), "train", 0, EpisodeSize(2, 1, 1), within_groups=True)
    drawn = one(sampler, np.arange(4000))
    groups = np.asarray(GROUPS)[drawn.classes]
    assert (groups[:, 0] == groups[:, 1]).all()
    # "c" has one class and is left out; "a" has two classes, "b" three, each half of the episodes
    share = (groups[:, 0] == "a").mean()
    assert abs(share - 0.5) < 0.04
    assert set(groups[:, 0]) == {"a", "b"}
    within_b = np.bincount(drawn.classes[groups[:, 0] == "b"].ravel(), minlength=6)
    assert within_b[[1, 3, 4]].min() > 0.28 * within_b.sum()


def test_groups_that_are_too_small_or_missing():
    size = EpisodeSize(4, 1, 1)
    with pytest.raises(UserError, match="no group has the 4 classes that an episode needs; the largest, 'b', has 3"):
        EpisodeSampler(source(GROUPS), "train", 0, size, within_groups=True)
    with pytest.raises(UserError, match="its classes have no groups"):
        EpisodeSampler(source(), "train", 0, size, within_groups=True)
    with pytest.raises(UserError, match="there are 2 groups for 6 classes"):
        source(["a", "b"])


def test_what_the_user_asks_for_wins_over_the_datas_own():
    own = toy("classes", grouped=True)
    assert own.rotations == dict.fromkeys(("train", "val", "test"), "classes")
    assert own.protocol()["within_groups"]
    chosen = toy("classes", grouped=True, rotations={"train": "per_class"}, within_groups=False)
    assert chosen.rotations == {"train": "per_class", "val": "none", "test": "none"}
    assert chosen.protocol()["rotations"] == chosen.rotations
    assert not chosen.protocol()["within_groups"]
    assert one(chosen.open("train"), np.arange(3)).turns is not None
    assert one(chosen.open("val"), np.arange(3)).turns is None
    everywhere = toy(rotations="classes", within_groups=True)
    assert len(everywhere.open("test").source.class_names) == 24
    drawn = one(everywhere.open("val"), np.arange(200))
    groups = np.repeat(np.unique(GROUPS, return_inverse=True)[1], 4)
    assert (groups[drawn.classes[:, 0]] == groups[drawn.classes[:, 1]]).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rotations": "class"}, "must be one of none, classes, per_class, but is 'class'"),
        ({"rotations": {"train": "clases"}}, "Did you mean classes?"),
        ({"rotations": {"tset": "none"}}, "must be one of train, val, test, but is 'tset'"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"seed": 10**30}, "seed must be a whole number"),
    ],
)
def test_bad_options(options, words):
    with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
        toy(**options)
    assert words in str(caught.value)
