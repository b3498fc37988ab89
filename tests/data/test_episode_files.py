"""Episodes as files: the very same tasks elsewhere, or one sentence."""

import json
import os

import numpy as np
import pytest
import torch

from metatransfer import Episode, EpisodicDataModule, GlyphEpisodes, MetaDatasetShape, SinusoidEpisodes, UserError
from metatransfer.batches import episodes_of
from metatransfer.data import SavedEpisodes, TensorSource, save_episodes


class Toys(EpisodicDataModule):
    """Classes of uneven size; ``shift`` changes the content."""

    def __init__(self, shift=0.0, rotation="none", **options):
        super().__init__(**({"num_ways": 3, "num_queries": 2, "test_episodes": 7, "val_episodes": 5} | options))
        self.shift = shift
        self.default_rotations = {"test": rotation}

    def source(self, split):
        labels = np.repeat(np.arange(6), [4, 9, 5, 7, 6, 8])
        data = torch.arange(len(labels) * 4).float().view(-1, 1, 2, 2) + self.shift
        return TensorSource(data, labels, list("abcdef"), f"Toys {split}")


def same(left, right):
    if isinstance(left, Episode):
        return all((a is None and b is None) or a.equal(b) for a, b in zip(left, right, strict=True))
    return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))


def tasks(data, split="test"):
    data.setup({"test": "test", "val": "validate"}[split])
    return [data.samplers[split].episodes(np.array([index]), torch.device("cpu")) for index in range(5)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rotation": "per_class"},
        {"rotation": "classes"},
        {"eval_task_shape": MetaDatasetShape(min_ways=2), "num_shots": 4, "num_ways": 6},
    ],
    ids=["fixed", "turned", "rotated classes", "uneven"],
)
def test_the_same_tasks_come_back(tmp_path, options):
    written = tasks(Toys(export_episodes=str(tmp_path / "out"), **options))
    given = Toys(episode_files=str(tmp_path / "out"), seed=99, test_episodes=1000, **options)
    assert same(written, tasks(given))
    assert given.num_episodes["test"] == 7  # as many as the file has
    assert not same(written, tasks(Toys(seed=99, **options)))
    loader = given.test_dataloader()
    assert sum(len(episode.query_y) for batch in loader for episode in episodes_of(batch)) == 7


def test_the_loader_serves_files_in_batches(tmp_path):
    Toys(export_episodes=str(tmp_path)).setup("test")
    data = Toys(episode_files={"test": str(tmp_path / "test.npz")}, tasks_per_batch=3)
    data.setup("test")
    batches = list(data.test_dataloader())
    assert [len(batch.query_y) for batch in batches] == [3, 3, 1]
    whole = Toys(tasks_per_batch=3)
    whole.setup("test")
    assert same(batches, list(whole.test_dataloader()))


def test_only_evaluations_are_written(tmp_path):
    data = Toys(export_episodes=str(tmp_path))
    data.setup(None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["test.npz", "val.npz"]
    assert os.stat(tmp_path / "test.npz").st_mode & 0o777 == 0o644


def test_other_content_is_refused(tmp_path):
    Toys(export_episodes=str(tmp_path)).setup("test")
    with pytest.raises(UserError, match=r"holds episodes of Toys test \(39 samples\), but the samples of Toys test"):
        Toys(shift=1.0, episode_files=str(tmp_path)).setup("test")
    with pytest.raises(UserError, match="are not the same"):
        Toys(rotation="classes", episode_files=str(tmp_path)).setup("test")


def test_other_episodes_than_configured_are_refused(tmp_path):
    Toys(export_episodes=str(tmp_path)).setup("test")
    with pytest.raises(UserError, match=r"holds 3-way 1-shot episodes with 2 queries per class, but .* set to 4-way"):
        Toys(num_ways=4, episode_files=str(tmp_path)).setup("test")


def forged(path, **changes):
    with np.load(path) as file:
        arrays = dict(file) | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"support": lambda a: a + 10_000}, "is damaged"),
        ({"support": lambda a: -a - 1}, "is damaged"),
        ({"query_y": lambda a: a + 7}, "is damaged"),
        ({"query_y": lambda a: (a + 1) % 3}, "is damaged"),
        ({"query": lambda a: a[:-1]}, "is damaged"),
        ({"classes_lengths": lambda a: -a}, "is damaged"),
        ({"support": lambda a: a.astype(float)}, "is no file of episodes"),
        ({"support": lambda a: None}, "is no file of episodes"),
        ({"query_lengths": lambda a: None}, "is no file of episodes"),
        ({"header": lambda a: np.frombuffer(b"{}", np.uint8)}, "is no file of episodes"),
        ({"header": lambda a: np.frombuffer(b"[1]", np.uint8)}, "is no file of episodes"),
        ({"header": lambda a: None}, "is no file of episodes"),
    ],
)
def test_damaged_files(tmp_path, changes, words):
    Toys(export_episodes=str(tmp_path)).setup("test")
    path = tmp_path / "test.npz"
    with np.load(path) as file:
        changed = {name: change(file[name]) for name, change in changes.items()}
    forged(path, **changed)
    with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
        Toys(episode_files=str(tmp_path)).setup("test")
    assert words in str(caught.value)


def test_pickled_files_are_not_opened(tmp_path):
    path = tmp_path / "test.npz"
    np.savez(path, header=np.array([{"format": 1}], dtype=object))
    with pytest.raises(UserError, match="is no file of episodes"):
        Toys(episode_files=str(tmp_path)).setup("test")


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04 cut off"])
def test_other_files(tmp_path, content):
    (tmp_path / "test.npz").write_bytes(content)
    with pytest.raises(UserError, match="is no file of episodes"):
        Toys(episode_files=str(tmp_path)).setup("test")


def test_missing_files(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        Toys(episode_files={"test": str(tmp_path / "tset.npz")}).setup("test")
    with pytest.raises(UserError, match=r"neither val\.npz nor test\.npz"):
        Toys(episode_files=str(tmp_path)).setup("test")
    with pytest.raises(UserError, match="must be one of val, test, but is 'train'"):
        Toys(episode_files={"train": "x.npz"})
    with pytest.raises(UserError, match="cannot be written"):
        Toys(export_episodes="/proc/nowhere").setup("test")
    assert not list(tmp_path.iterdir())


def test_generated_tasks_have_no_files(tmp_path):
    with pytest.raises(UserError, match="generates its tasks"):
        SinusoidEpisodes(export_episodes=str(tmp_path)).setup("test")
    assert not list(tmp_path.iterdir())


def test_header_tells_what_it_is(tmp_path):
    data = GlyphEpisodes(test_episodes=3)
    data.setup("test")
    sampler = data.samplers["test"]
    path = save_episodes(tmp_path / "tasks.npz", sampler, 3)
    with np.load(path) as file:
        header = json.loads(file["header"].tobytes())
    assert header == {
        "format": "metatransfer episodes 1",
        "data": sampler.source.name,
        "split": "test",
        "samples": len(sampler.source),
        "content": sampler.source.fingerprint(),
        "episodes": 3,
    }
    saved = SavedEpisodes(sampler, path)
    assert saved.count == 3
    assert same(saved.episodes(np.arange(3), torch.device("cpu")), sampler.episodes(np.arange(3), torch.device("cpu")))
