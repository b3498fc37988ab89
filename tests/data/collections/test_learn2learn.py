"""learn2learn's data sets as a source: for real where learn2learn is installed, and one sentence where it is not."""

import builtins
import pickle
import random
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from metatransfer.data.collections import Learn2Learn
from metatransfer.data.collections.learn2learn import BENCHMARKS
from metatransfer.errors import UserError
from metatransfer.functional.random import stream_keys

CPU = torch.device("cpu")


def train_source(data):
    return Learn2Learn(train=data).opened()["train"]


class Blobs(Dataset):
    """Gaussian classes with labels of any kind, in random order."""

    def __init__(self, names=("b", "a", "d", "c"), each=6, kind=torch.float32, seed=0):
        generator = np.random.default_rng(seed)
        self.labels = [str(name) for name in generator.permutation(np.repeat(names, each))]
        centres = {name: generator.normal(size=5) for name in names}
        self.x = np.stack([centres[one] + 0.2 * generator.normal(size=5) for one in self.labels])
        self.kind = kind

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return torch.tensor(self.x[index]).to(self.kind), self.labels[index]


class Pictures(Dataset):
    """PIL images whose grey level is their index."""

    def __init__(self, mode="L"):
        self.mode = mode

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return Image.new(self.mode, (4, 5), index if self.mode == "L" else (index, 0, 2 * index)), index % 4


def test_without_learn2learn_one_sentence_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.partition(".")[0] == "learn2learn":
            raise ImportError("No module named 'learn2learn'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UserError, match=r"install the extra, .*metatransfer\[learn2learn\].*build_learn2learn"):
        Learn2Learn(train=object()).opened()["train"]
    with pytest.raises(UserError, match="install the extra"):
        Learn2Learn("omniglot").opened()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "give either the name of a learn2learn benchmark or its data sets"),
        ({"benchmark": "omniglot", "train": 1}, "give either the name"),
        ({"benchmark": "omniglto"}, "Did you mean omniglot?"),
        ({"benchmark": "omniglot", "own_tasks": True}, "own_tasks needs learn2learn Tasksets"),
    ],
)
def test_bad_arguments(options, words):
    with pytest.raises(UserError) as caught:
        Learn2Learn(**options)
    assert words in str(caught.value)


@pytest.fixture(scope="module")
def l2l():
    return pytest.importorskip("learn2learn")


def test_samples_and_labels_are_those_of_the_data_set(l2l):
    blobs = Blobs()
    source = train_source(l2l.data.MetaDataset(blobs))
    assert source.class_names == ("a", "b", "c", "d")
    assert source.sizes.tolist() == [6] * 4
    for index, label in enumerate(source.labels):
        x = source.read(torch.tensor([index]), CPU)[0]
        (found,) = [i for i in range(len(blobs)) if blobs[i][0].equal(x)]
        assert blobs.labels[found] == source.class_names[label]


def test_task_sets_and_filtered_sets(l2l):
    whole = l2l.data.MetaDataset(Blobs())
    few = l2l.data.FilteredMetaDataset(whole, labels=["a", "c", "d"])
    tasks = l2l.data.Taskset(few, [l2l.data.transforms.NWays(few, n=2), l2l.data.transforms.LoadData(few)], 10)
    for given in (few, tasks):
        source = train_source(given)
        assert source.class_names == ("a", "c", "d")
        assert len(source) == 18
        for label, name in enumerate(source.class_names):
            for index in np.flatnonzero(source.labels == label):
                x = source.read(torch.tensor([index]), torch.device("cpu"))[0]
                matches = [i for i in range(24) if whole[i][0].equal(x)]
                assert [whole[i][1] for i in matches] == [name]


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_pil_images_become_tensors(l2l, mode, channels):
    source = train_source(l2l.data.MetaDataset(Pictures(mode)))
    assert source.sample_shape == (channels, 5, 4)
    x = source.read(torch.arange(12).view(3, 4), torch.device("cpu"))
    assert x.shape == (3, 4, channels, 5, 4)
    # three pictures of each of four classes, in order
    expected = torch.tensor([4 * place + label for label in range(4) for place in range(3)]).view(3, 4) / 255
    assert x[:, :, 0, 0, 0].allclose(expected)
    if channels == 3:
        assert x[:, :, 2, 0, 0].allclose(2 * expected)
        assert not x[:, :, 1].any()


@pytest.mark.parametrize("mode", ["I;16", "I"])
def test_sixteen_bit_images_are_scaled_not_clipped(l2l, mode):
    class Deep(Pictures):
        def __getitem__(self, index):
            pixels = np.full((5, 4), 5000 * index, np.uint16 if mode == "I;16" else np.int32)
            return Image.fromarray(pixels), index % 4

    source = train_source(l2l.data.MetaDataset(Deep()))
    x = source.read(torch.arange(12), torch.device("cpu"))
    assert x.shape == (12, 1, 5, 4)
    expected = torch.tensor([4 * place + label for label in range(4) for place in range(3)]) * 5000 / 65535
    assert x[:, 0, 0, 0].allclose(expected, atol=1 / 255)


def test_bytes_become_fractions(l2l):
    source = train_source(l2l.data.MetaDataset(Blobs(kind=torch.uint8)))
    x = source.read(torch.arange(24), torch.device("cpu"))
    assert x.dtype == torch.float32
    assert (x * 255).allclose((x * 255).round())


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (lambda: Blobs(), "expected a learn2learn MetaDataset or Taskset, but got a Blobs"),
        (lambda: 7, "but got a int"),
    ],
)
def test_other_objects(l2l, data, words):
    with pytest.raises(UserError) as caught:
        train_source(data())
    assert words in str(caught.value)


def test_samples_that_are_no_tensors(l2l):
    class Words(Pictures):
        def __getitem__(self, index):
            return "word", index % 4

    class Uneven(Pictures):
        def __getitem__(self, index):
            return torch.zeros(1, 4, 4 + index), index % 4

    for kind, words in ((Words, "is a str, but must be a tensor"), (Uneven, "different shapes")):
        with pytest.raises(UserError) as caught:
            train_source(l2l.data.MetaDataset(kind())).read(torch.arange(5), torch.device("cpu"))
        assert words in str(caught.value)


def test_a_benchmark_whose_files_are_missing(l2l, tmp_path, monkeypatch):
    """No file of that name may be fetched in a test: a connection is an error."""
    import socket

    def refuse(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(UserError, match=r"benchmark 'omniglot'.*put omniglot-py/images_background\.zip"):
        Learn2Learn("omniglot", root=str(tmp_path / "data")).opened()


def test_the_omniglot_benchmark(l2l, tmp_path, monkeypatch):
    """1623 tiny characters in the zips that learn2learn reads; its split, its rotations, our episodes."""
    import torchvision

    folder = tmp_path / "omniglot-py"
    generator = np.random.default_rng(0)
    for part, count in (("images_background", 964), ("images_evaluation", 659)):
        alphabet = folder / part / "Alphabet"
        for character in range(count):
            (alphabet / f"character{character:04d}").mkdir(parents=True)
            for drawing in range(2):
                pixels = Image.fromarray(generator.integers(0, 2, (8, 8), dtype=np.uint8) * 255)
                pixels.save(alphabet / f"character{character:04d}" / f"{drawing}.png")
        with zipfile.ZipFile(folder / f"{part}.zip", "w"):
            pass
    monkeypatch.setattr(torchvision.datasets.Omniglot, "_check_integrity", lambda self: True)
    monkeypatch.setattr(torchvision.datasets.Omniglot, "download", lambda self: None)
    data = Learn2Learn("omniglot", str(tmp_path))
    names = [set(source.class_names) for source in data.opened().values()]
    assert [len(one) for one in names] == [1100, 100, 423]
    assert len(set.union(*names)) == 1623
    assert data.rotations["test"] == "per_class"
    assert data.opened()["test"].sample_shape == (1, 28, 28)
    assert set(Learn2Learn("omniglot", str(tmp_path), split_seed=1).opened()["test"].class_names) != names[2]
    assert data.protocol()["split"] == "learn2learn's omniglot, split seed 0"


def test_the_names_are_those_of_learn2learn(l2l):
    assert set(BENCHMARKS) == set(l2l.vision.benchmarks.list_tasksets())


@pytest.fixture
def mini_imagenet(tmp_path):
    """Files as learn2learn's, with 8 classes of 6 images in each split: red is 20 times the class."""
    for split in ("train", "validation", "test"):
        labels = np.arange(8).repeat(6)
        images = np.zeros((48, 84, 84, 3), np.uint8)
        images[..., 0] = 20 * labels[:, None, None]
        images[..., 1] = np.arange(48)[:, None, None]
        content = {"image_data": images, "class_dict": {f"n{one}": np.flatnonzero(labels == one) for one in range(8)}}
        with (tmp_path / f"mini-imagenet-cache-{split}.pkl").open("wb") as file:
            pickle.dump(content, file)
    return str(tmp_path)


def test_mini_imagenet_is_in_0_to_1(l2l, mini_imagenet):
    parts = Learn2Learn("mini-imagenet", mini_imagenet).opened()
    assert list(parts) == ["train", "val", "test"]
    for source in parts.values():
        x = source.read(torch.arange(len(source)), CPU)
        assert x.shape == (48, 3, 84, 84)
        assert x.max() == pytest.approx(140 / 255)


def task_set(l2l, ways=3, shots=3, count=-1, kind=Blobs):
    meta = l2l.data.MetaDataset(kind())
    transforms = l2l.data.transforms
    steps = [transforms.FusedNWaysKShots(meta, n=ways, k=shots), transforms.LoadData(meta)]
    return l2l.data.Taskset(meta, steps, num_tasks=count)


def numbers():
    """What the next draws of all generators would be, without taking them."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    drawn = random.random(), np.random.random(), torch.rand(()).item()
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    return drawn


def generate(tasks, indices, seed=0, shots=1, queries=2):
    generator = Learn2Learn(train=tasks, own_tasks=True).opened()["train"]
    return generator.generate(stream_keys(seed, 2, np.array(indices)), shots, queries, CPU)


def test_own_tasks_are_learn2learn_s_by_key(l2l):
    tasks = task_set(l2l)
    blobs = tasks.dataset.dataset
    before = numbers()
    together = generate(tasks, range(5))
    assert numbers() == before
    classes, first = set(), set()
    for task in range(5):
        assert together.support_y[task].bincount().tolist() == [1, 1, 1]
        assert together.query_y[task].bincount().tolist() == [2, 2, 2]
        x = torch.cat([together.support_x[task], together.query_x[task]])
        y = torch.cat([together.support_y[task], together.query_y[task]]).tolist()
        places = [i for one in x for i in range(len(blobs)) if blobs[i][0].equal(one)]
        assert len(set(places)) == 9
        seen = {(label, blobs.labels[place]) for label, place in zip(y, places, strict=True)}
        assert len(seen) == 3  # each label stands for one class
        classes |= {name for _, name in seen}
        first |= {name for label, name in seen if label == 0}
    assert len(classes) == 4
    assert len(first) > 1  # labels are drawn anew
    random.seed(17)  # after others have drawn, alone, and of another set
    assert generate(task_set(l2l), [3]).support_x[0].equal(together.support_x[3])
    assert not generate(tasks, [3], seed=1).query_x[0].equal(together.query_x[3])
    assert not tasks.sampled_descriptions


def test_own_tasks_keep_random_transforms_reproducible(l2l):
    class Noisy(Blobs):
        def __getitem__(self, index):
            x, y = super().__getitem__(index)
            return x + torch.rand(5) + random.random() + np.random.random(), y

    tasks = task_set(l2l, kind=Noisy)
    once = generate(tasks, [1]).query_x
    for draw in (random.random, np.random.random, torch.rand):  # what others draw in between changes nothing
        draw(*[1] if draw is torch.rand else [])
        assert generate(tasks, [1]).query_x.equal(once)


@pytest.mark.parametrize(
    ("ways", "shots", "count", "words"),
    [
        (3, 4, -1, "a task has 3 classes of 4 to 4 samples, but num_shots=1 and num_queries=2 need 3 of each"),
        (3, 99, -1, "its transforms cannot draw a task"),
        (3, 3, 5, "its 5 tasks would be counted several times, .* create the Taskset with num_tasks=-1"),
    ],
)
def test_own_tasks_that_do_not_fit(l2l, ways, shots, count, words):
    with pytest.raises(UserError, match=words):
        generate(task_set(l2l, ways, shots, count), [0])


def test_own_tasks_need_a_task_set_of_their_own_classes(l2l):
    whole = l2l.data.MetaDataset(Blobs())
    part = l2l.data.FilteredMetaDataset(whole, labels=["a", "b", "c"])
    transforms = l2l.data.transforms
    with pytest.raises(UserError, match="own_tasks needs a learn2learn Taskset, but got a MetaDataset"):
        generate(whole, [0])
    leaking = l2l.data.Taskset(part, [transforms.NWays(whole, n=3), transforms.LoadData(whole)])
    with pytest.raises(
        UserError, match="its NWays draws from 4 classes, but 1 of them are not in the split's data set"
    ):
        generate(leaking, [0])
    filtering = l2l.data.Taskset(
        part, [transforms.FusedNWaysKShots(whole, n=3, k=3, filter_labels=part.labels), transforms.LoadData(whole)]
    )
    assert generate(filtering, [0]).support_x.shape == (1, 3, 5)
    assert Learn2Learn(train=filtering, own_tasks=True).protocol()["tasks"] == "drawn by learn2learn"
