"""learn2learn's data sets as a source: for real where learn2learn is installed, and one sentence where it is not."""

import builtins
import pickle
import random
import zipfile

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from metatransfer.data.learn2learn_episodes import BENCHMARKS
from PIL import Image
from torch.utils.data import Dataset

from metatransfer import MLP, Learn2LearnEpisodes, ProtoNetModule, RandomAffine, UserError

SHAPE = {"num_ways": 3, "num_queries": 2, "tasks_per_batch": 2, "test_episodes": 6, "val_episodes": 6}


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
        Learn2LearnEpisodes(train=object()).source("train")
    with pytest.raises(UserError, match="install the extra"):
        Learn2LearnEpisodes("omniglot").source("train")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "give either the name of a learn2learn benchmark or its data sets"),
        ({"benchmark": "omniglot", "train": 1}, "give either the name"),
        ({"benchmark": "omniglto"}, "Did you mean omniglot?"),
    ],
)
def test_bad_arguments(options, words):
    with pytest.raises(UserError) as caught:
        Learn2LearnEpisodes(**options)
    assert words in str(caught.value)


@pytest.fixture(scope="module")
def l2l():
    return pytest.importorskip("learn2learn")


def test_samples_and_labels_are_those_of_the_data_set(l2l):
    blobs = Blobs()
    data = Learn2LearnEpisodes(test=l2l.data.MetaDataset(blobs), **SHAPE)
    source = data.open("test").source
    assert source.class_names == ("a", "b", "c", "d")
    for index in range(20):
        drawn, episode = data.samplers["test"](np.array([index])), data.episode("test", index)
        for part in ("support", "query"):
            samples, labels = getattr(drawn, part)[0], getattr(drawn, f"{part}_y")[0]
            for place, (sample, label) in enumerate(zip(samples, labels, strict=True)):
                x = getattr(episode, f"{part}_x")[0, place]
                found = [i for i in range(len(blobs)) if blobs[i][0].equal(x)]
                assert len(found) == 1
                assert blobs.labels[found[0]] == source.class_names[drawn.classes[0, label]]
                assert source.labels[sample] == drawn.classes[0, label]


def test_task_sets_and_filtered_sets(l2l):
    whole = l2l.data.MetaDataset(Blobs())
    few = l2l.data.FilteredMetaDataset(whole, labels=["a", "c", "d"])
    tasks = l2l.data.Taskset(few, [l2l.data.transforms.NWays(few, n=2), l2l.data.transforms.LoadData(few)], 10)
    for given in (few, tasks):
        source = Learn2LearnEpisodes(train=given, **SHAPE).source("train")
        assert source.class_names == ("a", "c", "d")
        assert len(source) == 18
        for label, name in enumerate(source.class_names):
            for index in np.flatnonzero(source.labels == label):
                x = source.read(torch.tensor([index]), torch.device("cpu"))[0]
                matches = [i for i in range(24) if whole[i][0].equal(x)]
                assert [whole[i][1] for i in matches] == [name]


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_pil_images_become_tensors(l2l, mode, channels):
    source = Learn2LearnEpisodes(train=l2l.data.MetaDataset(Pictures(mode)), **SHAPE).source("train")
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

    source = Learn2LearnEpisodes(train=l2l.data.MetaDataset(Deep()), **SHAPE).source("train")
    x = source.read(torch.arange(12), torch.device("cpu"))
    assert x.shape == (12, 1, 5, 4)
    expected = torch.tensor([4 * place + label for label in range(4) for place in range(3)]) * 5000 / 65535
    assert x[:, 0, 0, 0].allclose(expected, atol=1 / 255)


def test_bytes_become_fractions(l2l):
    source = Learn2LearnEpisodes(train=l2l.data.MetaDataset(Blobs(kind=torch.uint8)), **SHAPE).source("train")
    x = source.read(torch.arange(24), torch.device("cpu"))
    assert x.dtype == torch.float32
    assert (x * 255).allclose((x * 255).round())


def test_a_method_learns_from_it(l2l, tmp_path):
    """Through the Trainer, with worker processes, better than chance by far."""
    state = random.getstate()
    names = [f"{index:02d}" for index in range(12)]
    sets = [l2l.data.MetaDataset(Blobs(names, 20, seed=seed)) for seed in range(3)]
    data = Learn2LearnEpisodes(train=sets[0], val=sets[1], test=sets[2], num_workers=2, train_episodes=8, **SHAPE)
    module = ProtoNetModule(MLP(in_shape=[5], hidden=[16]))
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, default_root_dir=tmp_path, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, data)
    assert trainer.test(module, datamodule=data, verbose=False)[0]["test/accuracy"] > 0.9
    assert random.getstate() == state


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (lambda: Blobs(), "a learn2learn MetaDataset or Taskset is needed, but this is a Blobs"),
        (lambda: 7, "but this is a int"),
    ],
)
def test_other_objects(l2l, data, words):
    with pytest.raises(UserError) as caught:
        Learn2LearnEpisodes(train=data(), **SHAPE).source("train")
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
            Learn2LearnEpisodes(train=l2l.data.MetaDataset(kind()), **SHAPE).source("train").read(
                torch.arange(5), torch.device("cpu")
            )
        assert words in str(caught.value)


def test_a_split_without_data(l2l):
    with pytest.raises(UserError, match="no learn2learn data set for val: give it as val="):
        Learn2LearnEpisodes(train=l2l.data.MetaDataset(Blobs()), **SHAPE).setup("fit")


def test_a_benchmark_whose_files_are_missing(l2l, tmp_path, monkeypatch):
    """No file of that name may be fetched in a test: a connection is an error."""
    import socket

    def refuse(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(UserError, match=r"benchmark 'omniglot'.*put omniglot-py/images_background\.zip"):
        Learn2LearnEpisodes("omniglot", root=str(tmp_path / "data")).source("train")


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
    options = {"root": str(tmp_path), "num_ways": 3, "num_queries": 1}
    data = Learn2LearnEpisodes("omniglot", **options)
    splits = {split: data.open(split).source for split in ("train", "val", "test")}
    assert [len(splits[split].class_names) for split in splits] == [1100, 100, 423]
    names = [set(source.class_names) for source in splits.values()]
    assert not (names[0] & names[1])
    assert not (names[0] & names[2])
    assert not (names[1] & names[2])
    assert data.rotations["test"] == "per_class"
    episode = data.episode("test", 0)
    assert episode.support_x.shape == (1, 3, 1, 28, 28)
    again = Learn2LearnEpisodes("omniglot", **options)
    again.open("test")
    assert again.episode("test", 0).query_x.equal(episode.query_x)
    other = Learn2LearnEpisodes("omniglot", split_seed=1, **options)
    assert set(other.open("test").source.class_names) != names[2]
    with pytest.raises(UserError, match="draws from 1623 classes, of which 523 are not in the split's data set"):
        Learn2LearnEpisodes("omniglot", own_tasks=True, **options).open("train")


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


@pytest.mark.parametrize("own", [False, True])
def test_mini_imagenet_is_in_0_to_1(l2l, mini_imagenet, own):
    data = Learn2LearnEpisodes("mini-imagenet", mini_imagenet, own_tasks=own, eval_num_ways=4, **SHAPE)
    data.setup()
    for split, ways in (("train", 3), ("val", 4), ("test", 4)):
        episode = data.episode(split, 0)
        assert episode.support_x.shape == (1, ways, 3, 84, 84)
        assert episode.query_x.shape == (1, 2 * ways, 3, 84, 84)
        assert 0 < episode.query_x.max() <= 140 / 255


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


@pytest.mark.parametrize("count", [-1, 5])
def test_own_tasks_are_learn2learn_s_by_index(l2l, count):
    options = {"own_tasks": True, **SHAPE, "test_episodes": 5}
    tasks = task_set(l2l, count=count)
    blobs = tasks.dataset.dataset
    data = Learn2LearnEpisodes(test=tasks, **options)
    data.open("test")
    before = numbers()
    alone = [data.episode("test", index) for index in range(5)]
    assert numbers() == before
    assert not alone[0].query_x.equal(alone[1].query_x)
    classes, first = set(), set()
    for episode in alone:
        assert episode.support_y[0].bincount().tolist() == [1, 1, 1]
        assert episode.query_y[0].bincount().tolist() == [2, 2, 2]
        seen = {}
        places = []
        for part in ("support", "query"):
            samples, labels = getattr(episode, f"{part}_x")[0], getattr(episode, f"{part}_y")[0]
            for x, label in zip(samples, labels.tolist(), strict=True):
                (place,) = [i for i in range(len(blobs)) if blobs[i][0].equal(x)]
                places.append(place)
                assert seen.setdefault(label, blobs.labels[place]) == blobs.labels[place]
        assert len(set(places)) == 9
        assert len(set(seen.values())) == 3
        classes |= set(seen.values())
        first.add(seen[0])
    assert len(classes) == 4
    assert len(first) > 1
    # in another order, in one batch, in a worker process, and after others have drawn
    random.seed(17)
    other = Learn2LearnEpisodes(test=task_set(l2l, count=count), num_workers=1, **options)
    batches = list(other.test_dataloader())
    together = [batch.query_x[task] for batch in batches for task in range(len(batch.query_x))]
    assert all(one.equal(episode.query_x[0]) for one, episode in zip(together, alone, strict=True))
    assert data.episode("test", 3).support_x.equal(alone[3].support_x)
    for changed in ({"seed": 1}, {}):
        third = Learn2LearnEpisodes(test=task_set(l2l, count=count), **options | changed)
        third.open("test")
        assert third.episode("test", 0).query_x.equal(alone[0].query_x) is not bool(changed)


def test_own_tasks_keep_random_transforms_reproducible(l2l):
    class Noisy(Blobs):
        def __getitem__(self, index):
            x, y = super().__getitem__(index)
            return x + torch.rand(5) + random.random() + np.random.random(), y

    tasks = task_set(l2l, kind=Noisy, count=4)
    data = Learn2LearnEpisodes(train=tasks, own_tasks=True, **SHAPE)
    data.open("train")
    once = data.episode("train", 1).query_x
    for draw in (random.random, np.random.random, torch.rand):  # what others draw in between changes nothing
        draw(*[1] if draw is torch.rand else [])
        assert data.episode("train", 1).query_x.equal(once)
    assert data.episode("train", 5).query_x[0, 0].shape == (5,)
    assert not tasks.sampled_descriptions


def test_own_tasks_have_their_labels_drawn_anew(l2l):
    """All classes are in every task, so that only the labels can differ."""
    tasks = task_set(l2l, ways=4)
    blobs = tasks.dataset.dataset
    data = Learn2LearnEpisodes(train=tasks, own_tasks=True, **SHAPE | {"num_ways": 4})
    data.open("train")
    first = set()
    for index in range(20):
        episode = data.episode("train", index)
        x = episode.support_x[0, episode.support_y[0].tolist().index(0)]
        first |= {blobs.labels[place] for place in range(len(blobs)) if blobs[place][0].equal(x)}
    assert first == {"a", "b", "c", "d"}


def test_own_tasks_that_were_drawn_before_stay(l2l):
    tasks = task_set(l2l, count=4)
    drawn, _ = tasks[2]
    data = Learn2LearnEpisodes(train=tasks, own_tasks=True, **SHAPE)
    data.open("train")
    episode = data.episode("train", 2 + 4)
    served = torch.cat([episode.support_x[0], episode.query_x[0]])
    assert served.sum(1).sort().values.equal(drawn.float().sum(1).sort().values)


def test_own_tasks_are_augmented_in_training(l2l):
    tasks = task_set(l2l, kind=Grey)
    still = Learn2LearnEpisodes(train=tasks, own_tasks=True, **SHAPE)
    moved = Learn2LearnEpisodes(train=tasks, own_tasks=True, augmentation=RandomAffine(degrees=45), **SHAPE)
    plain, changed, again = (next(iter(one.train_dataloader())) for one in (still, moved, moved))
    assert plain.query_y.equal(changed.query_y)
    assert not plain.query_x.equal(changed.query_x)
    assert changed.query_x.equal(again.query_x)


class Grey(Pictures):
    def __getitem__(self, index):
        return torch.eye(6)[None] + index, index % 4


@pytest.mark.parametrize(
    ("ways", "shots", "count", "words"),
    [
        (
            4,
            3,
            -1,
            "task 0 has 4 classes of 3 to 3 samples, but num_ways=3, num_shots=1 and num_queries=2 need 3 classes",
        ),
        (3, 4, -1, "task 0 has 3 classes of 4 to 4 samples"),
        (3, 99, -1, "its transforms cannot draw a task"),
        (3, 3, 5, "its 5 tasks would be counted several times in test_episodes=6"),
    ],
)
def test_own_tasks_that_do_not_fit(l2l, ways, shots, count, words):
    data = Learn2LearnEpisodes(test=task_set(l2l, ways, shots, count), own_tasks=True, **SHAPE)
    with pytest.raises(UserError) as caught:
        next(iter(data.test_dataloader()))
    assert words in str(caught.value)


def test_own_tasks_need_a_task_set_of_their_own_classes(l2l):
    whole = l2l.data.MetaDataset(Blobs())
    part = l2l.data.FilteredMetaDataset(whole, labels=["a", "b", "c"])
    transforms = l2l.data.transforms
    with pytest.raises(UserError, match="own_tasks needs a learn2learn Taskset, but this is a MetaDataset"):
        Learn2LearnEpisodes(train=whole, own_tasks=True, **SHAPE).open("train")
    leaking = l2l.data.Taskset(part, [transforms.NWays(whole, n=3), transforms.LoadData(whole)])
    with pytest.raises(UserError, match="its NWays draws from 4 classes, of which 1 are not in the split's data set"):
        Learn2LearnEpisodes(train=leaking, own_tasks=True, **SHAPE).open("train")
    filtering = l2l.data.Taskset(
        part, [transforms.FusedNWaysKShots(whole, n=3, k=3, filter_labels=part.labels), transforms.LoadData(whole)]
    )
    data = Learn2LearnEpisodes(train=filtering, own_tasks=True, **SHAPE)
    data.open("train")
    assert data.episode("train", 0).support_x.shape == (1, 3, 5)
    assert data.protocol()["tasks"] == "drawn by learn2learn"


def test_own_tasks_refuse_what_only_samples_have(l2l):
    data = Learn2LearnEpisodes(test=task_set(l2l), own_tasks=True, rotations="classes", **SHAPE)
    with pytest.raises(UserError, match="leave out rotations"):
        data.open("test")
