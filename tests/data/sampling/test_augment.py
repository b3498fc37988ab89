"""RandomAffine: the right direction and amount, against scipy's own resampling."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torchvision.transforms import v2

from metatransfer.data import Augmentation, EpisodeSize, RandomAffine, TensorSource, TorchvisionTransforms
from metatransfer.data.sampling.augment import Changes, apply_transforms, check_deterministic
from metatransfer.data.sampling.episodes import EpisodeSampler
from metatransfer.data.sources import SPLITS
from metatransfer.errors import UserError
from metatransfer.functional.random import stream_keys
from serving_by_names import Given, episodic

NOTHING = {"degrees": 0.0, "translate": 0.0, "scale": 0.0, "shear": 0.0}
SIDE = 41


@pytest.fixture
def image():
    """A smooth, lopsided picture that is dark at the border."""
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float64)
    blob = lambda r, c, s: np.exp(-((y - r) ** 2 + (x - c) ** 2) / s**2)  # noqa: E731
    return blob(14, 18, 4) + 0.7 * blob(22, 27, 3) + 0.5 * blob(27, 17, 2.5)


def run(augmentation, image, u):
    x = torch.from_numpy(np.ascontiguousarray(image)).float()[None, None]
    return augmentation(x, torch.tensor([u]))[0, 0].numpy()


def centroid(image):
    return np.array(ndimage.center_of_mass(image))


@pytest.mark.parametrize("u", [[0.5] * 5, [0.0] * 5, [0.99, 0.1, 0.3, 0.7, 0.2]])
def test_zero_amounts_are_the_identity(image, u):
    np.testing.assert_allclose(run(RandomAffine(**NOTHING), image, u), image, atol=2e-6)


def test_the_middle_of_the_range_is_the_identity(image):
    np.testing.assert_allclose(run(RandomAffine(30, 0.2, 0.5, 0.3), image, [0.5] * 5), image, atol=2e-6)


@pytest.mark.parametrize("degrees", [10, 33, 90, 180])
@pytest.mark.parametrize("sign", [-1, 1])
def test_rotation(image, degrees, sign):
    found = run(RandomAffine(**{**NOTHING, "degrees": float(degrees)}), image, [0.5 + sign * 0.5] + [0.5] * 4)
    both = [ndimage.rotate(image, turn * degrees, reshape=False, order=1) for turn in (1, -1)]
    errors = [np.abs(found - expected).max() for expected in both]
    # bilinear in both: equal up to the border; which of the two turns is positive is free, but the signs must differ
    assert min(errors) < 0.02
    other = run(RandomAffine(**{**NOTHING, "degrees": float(degrees)}), image, [0.5 - sign * 0.5] + [0.5] * 4)
    assert np.abs(other - both[1 - int(np.argmin(errors))]).max() < 0.02
    if degrees != 180:
        assert np.abs(found - other).max() > 0.1


@pytest.mark.parametrize(("axis", "position"), [(1, 3), (0, 4)])
@pytest.mark.parametrize("sign", [-1, 1])
def test_shift(image, axis, position, sign):
    u = [0.5] * 5
    u[position] = 0.5 + sign * 0.5
    found = run(RandomAffine(**{**NOTHING, "translate": 4 / SIDE}), image, u)
    moved = centroid(found) - centroid(image)
    assert abs(moved[axis]) == pytest.approx(4, abs=0.02)
    assert moved[1 - axis] == pytest.approx(0, abs=0.02)
    np.testing.assert_allclose(found, np.roll(image, round(moved[axis]), axis), atol=1e-3)


@pytest.mark.parametrize("u", [0.0, 1.0])
def test_zoom(image, u):
    found = run(RandomAffine(**{**NOTHING, "scale": 0.25}), image, [0.5, u, 0.5, 0.5, 0.5])
    factor = math.sqrt(found.sum() / image.sum())  # areas grow by the square
    assert factor in (pytest.approx(1.25, abs=0.01), pytest.approx(0.8, abs=0.01))
    middle = (SIDE - 1) / 2
    np.testing.assert_allclose(centroid(found) - middle, factor * (centroid(image) - middle), atol=0.05)


def test_the_two_ends_of_the_zoom_differ(image):
    sums = [run(RandomAffine(**{**NOTHING, "scale": 0.25}), image, [0.5, u, 0.5, 0.5, 0.5]).sum() for u in (0.0, 1.0)]
    assert sums[1] / sums[0] == pytest.approx(1.25**4, rel=0.02)


@pytest.mark.parametrize("u", [0.0, 1.0])
def test_shear_is_horizontal(image, u):
    found = run(RandomAffine(**{**NOTHING, "shear": 0.3}), image, [0.5, 0.5, u, 0.5, 0.5])
    y, x = np.mgrid[:SIDE, :SIDE]
    middle = (SIDE - 1) / 2
    candidates = [
        ndimage.map_coordinates(image, [y, x + turn * 0.3 * (y - middle)], order=1, mode="constant") for turn in (1, -1)
    ]
    assert min(np.abs(found - candidate).max() for candidate in candidates) < 0.02


@pytest.mark.parametrize("shape", [(24, 48), (48, 24)])
def test_rotation_of_an_oblong_image_does_not_stretch_it(shape):
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float64)
    middle = [(side - 1) / 2 for side in shape]
    image = np.exp(-(((y - middle[0]) ** 2 + (x - middle[1]) ** 2) / 16))  # round: a rotation leaves it as it is
    found = run(RandomAffine(**{**NOTHING, "degrees": 90.0}), image, [1.0] + [0.5] * 4)
    np.testing.assert_allclose(found, image, atol=0.02)


def test_a_shift_is_of_the_stated_size_whatever_the_zoom(image):
    """'shift up to this fraction of the image's size': also of a picture that is zoomed."""
    u = [0.5, 1.0, 0.5, 1.0, 0.5]
    small = RandomAffine(**{**NOTHING, "scale": 0.5, "translate": 0.1})
    middle = (SIDE - 1) / 2
    dot = np.zeros((SIDE, SIDE))
    dot[int(middle) - 1 : int(middle) + 2, int(middle) - 1 : int(middle) + 2] = 1
    for zoom in (0.0, 1.0):
        u[1] = zoom
        moved = centroid(run(small, dot, u))[1] - middle
        assert abs(moved) <= 0.1 * SIDE + 0.1


@pytest.mark.parametrize("turn", [0.0, 1.0])
@pytest.mark.parametrize("lean", [0.0, 1.0])
def test_rotation_and_shear_together_keep_areas(image, turn, lean):
    found = run(RandomAffine(**{**NOTHING, "degrees": 40.0, "shear": 0.4}), image, [turn, 0.5, lean, 0.5, 0.5])
    assert found.sum() == pytest.approx(image.sum(), rel=0.01)
    assert np.abs(found - image).max() > 0.1


def test_outside_is_zero():
    found = run(RandomAffine(**{**NOTHING, "translate": 0.25}), np.ones((20, 20)), [0.5, 0.5, 0.5, 1.0, 0.5])
    assert ((found == 0).all(0).sum(), (found == 1).all(0).sum()) == (5, 15)


def test_samples_of_a_batch_are_independent(image):
    augmentation = RandomAffine(30, 0.2, 0.5, 0.3)
    generator = torch.Generator().manual_seed(0)
    x, u = torch.rand(6, 2, 28, 28, generator=generator), torch.rand(6, 5, generator=generator)
    together = augmentation(x, u)
    assert together.shape == x.shape
    assert together.dtype == x.dtype
    for i in range(6):
        torch.testing.assert_close(augmentation(x[i : i + 1], u[i : i + 1])[0], together[i], rtol=0, atol=1e-6)
    per_channel = augmentation(x[:, 1:], u)
    torch.testing.assert_close(per_channel, together[:, 1:], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", list(NOTHING))
@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_bad_amounts(name, value):
    with pytest.raises(UserError, match=name):
        RandomAffine(**{name: value})


def test_a_shift_of_the_whole_image():
    with pytest.raises(UserError, match=r"translate .*below 1, but is 1\.0"):
        RandomAffine(translate=1.0)


def test_augmentations_must_say_what_they_do():
    with pytest.raises(NotImplementedError, match=r"Mine must define __call__"):
        type("Mine", (Augmentation,), {})()(torch.zeros(1), torch.zeros(1))


# ---- torchvision


def crops():
    return TorchvisionTransforms([v2.RandomResizedCrop(12, antialias=True), v2.RandomHorizontalFlip()])


def test_torchvision_transforms_are_a_function_of_their_numbers():
    x, u = torch.rand(6, 3, 16, 16), torch.rand(6, 2)
    state = torch.get_rng_state()
    changed = crops()(x, u)
    assert torch.get_rng_state().equal(state)
    assert changed.shape == (6, 3, 12, 12)
    torch.manual_seed(5)
    assert crops()(x[2:4], u[2:4]).equal(changed[2:4])  # in other company, at another time
    assert not crops()(x[:1], u[1:2]).equal(changed[:1])


def test_every_image_is_changed_in_its_own_way():
    x = torch.rand(1, 3, 16, 16).expand(40, -1, -1, -1)
    u = torch.rand(40, 2, generator=torch.Generator().manual_seed(0))
    changed = TorchvisionTransforms([v2.RandomHorizontalFlip()])(x, u)
    flipped = sum(one.equal(x[0].flip(-1)) for one in changed)
    assert 8 < flipped < 32
    assert flipped + sum(one.equal(x[0]) for one in changed) == 40


def test_whole_episodes_are_changed_in_one_way():
    x = torch.rand(1, 1, 3, 16, 16).expand(40, 5, -1, -1, -1)
    keys = stream_keys(0, np.arange(40))
    augmentation = TorchvisionTransforms([v2.RandomHorizontalFlip()], each="episode")
    changed = augmentation.batch(x, keys)
    flipped = torch.stack([torch.stack([one.equal(x[0, 0].flip(-1)) * torch.ones(()) for one in t]) for t in changed])
    assert flipped.mean(1).unique().tolist() == [0, 1]
    assert 8 < flipped[:, 0].sum() < 32
    assert augmentation.batch(x[3:5], keys[3:5]).equal(changed[3:5])


@pytest.mark.parametrize("each", ["image", "episode"])
def test_augmented_episodes_do_not_depend_on_their_company(each):
    images = TensorSource(torch.rand(40, 3, 16, 16), np.arange(40) % 4, list("abcd"), "I")
    augmentation = TorchvisionTransforms([v2.RandomResizedCrop(8, antialias=True), v2.ColorJitter(0.4)], each)
    draw = EpisodeSampler(images, "train", 0, EpisodeSize(3, 1, 2), changes=Changes(augmentation))
    together = draw.batch(np.arange(6), torch.device("cpu"))
    torch.rand(7)
    alone = draw.batch(np.array([4]), torch.device("cpu"))
    assert alone.query_x[0].equal(together.query_x[4])
    assert alone.support_x.shape == (1, 3, 3, 8, 8)


def test_transform_is_the_last_and_changes_everything():
    images = TensorSource(torch.rand(40, 3, 16, 16), np.arange(40) % 4, list("abcd"), "I")

    def data(**options):
        return episodic(Given(dict.fromkeys(SPLITS, images), divided_by="class"), num_ways=3, num_queries=2, **options)

    mean, sd = [0.4, 0.5, 0.6], [0.1, 0.2, 0.3]
    plain, normal = data(), data(transform=[v2.Normalize(mean, sd)])
    for split in ("train", "val", "test"):
        expected, found = plain.episode(split, 3), normal.episode(split, 3)
        for one, other in ((expected.support_x, found.support_x), (expected.query_x, found.query_x)):
            scale = torch.tensor(sd).view(3, 1, 1)
            assert torch.allclose((one - torch.tensor(mean).view(3, 1, 1)) / scale, other)
    assert "Normalize" in str(normal.protocol()["transform"])
    resized = data(transform=[v2.Resize(8, antialias=True)])
    assert resized.info().sample_shape == (3, 8, 8)
    assert resized.episode("val", 0).query_x.shape == (1, 6, 3, 8, 8)


@pytest.mark.parametrize("transform", [v2.RandomHorizontalFlip(), v2.RandomCrop(60), v2.GaussianNoise()])
def test_random_transforms_of_evaluations_are_refused(transform):
    with pytest.raises(UserError, match=r"is random.*TorchvisionTransforms"):
        check_deterministic([v2.Normalize([0.5] * 3, [0.5] * 3), transform])


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: TorchvisionTransforms([]), "transforms is empty"),
        (lambda: TorchvisionTransforms([v2.RandomHorizontalFlip()], "task"), "must be one of image, episode"),
        (lambda: apply_transforms([v2.Normalize([0.5] * 3, [1.0] * 3)], torch.rand(2, 2, 8, 8)), "fails on images of"),
        (lambda: apply_transforms([v2.ToDtype(torch.uint8, scale=True)], torch.rand(2, 1, 8, 8)), "torch.uint8"),
        (
            lambda: TorchvisionTransforms([v2.RandomResize(5, 9)])(torch.rand(9, 3, 8, 8), torch.rand(9, 2)),
            "different sizes",
        ),
    ],
)  # fmt: skip
def test_bad_transforms(act, words):
    with pytest.raises(UserError) as caught:
        act()
    assert words in str(caught.value)
