"""Episodes as files: the very same tasks elsewhere, or one sentence."""

import json
import os

import numpy as np
import pytest
import torch

from metatransfer import Episode, Glyphs, MetaDatasetShape, Sinusoids, UserError
from metatransfer.batches import episodes_of
from metatransfer.data import TensorSource
from metatransfer.data.sampling.saved import SavedEpisodes, save_episodes
from serving_by_names import Given, episodic


def toys(shift=0.0, rotation="none", **options):
    """Classes of uneven size; ``shift`` changes the content."""
    labels = np.repeat(np.arange(6), [4, 9, 5, 7, 6, 8])
    data = torch.arange(len(labels) * 4).float().view(-1, 1, 2, 2) + shift
    parts = {split: TensorSource(data, labels, list("abcdef"), f"Toys {split}") for split in ("train", "val", "test")}
    source = Given(parts, divided_by="class", rotations={"test": rotation})
    return episodic(source, **{"num_ways": 3, "num_queries": 2, "test_episodes": 7, "val_episodes": 5} | options)


def same(left, right):
    if isinstance(left, Episode):
        return all((a is None and b is None) or a.equal(b) for a, b in zip(left, right, strict=True))
    return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))


def tasks(data, split="test"):
    data.setup({"test": "test", "val": "validate"}[split])
    return [data.open(split).batch(np.array([index]), torch.device("cpu")) for index in range(5)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rotation": "per_class"},
        {"rotation": "classes"},
        {"eval_shape": MetaDatasetShape(min_ways=2), "num_shots": 4, "num_ways": 6},
    ],
    ids=["fixed", "turned", "rotated classes", "uneven"],
)
def test_the_same_tasks_come_back(tmp_path, options):
    written = tasks(toys(export=str(tmp_path / "out"), **options))
    given = toys(use=str(tmp_path / "out"), seed=99, test_episodes=1000, **options)
    assert same(written, tasks(given))
    assert given.num_episodes["test"] == 7  # as many as the file has
    assert not same(written, tasks(toys(seed=99, **options)))
    loader = given.test_dataloader()
    assert sum(len(episode.query_y) for batch in loader for episode in episodes_of(batch)) == 7


def test_the_loader_serves_files_in_batches(tmp_path):
    toys(export=str(tmp_path)).setup("test")
    data = toys(use={"test": str(tmp_path / "test.npz")}, per_batch=3)
    data.setup("test")
    batches = list(data.test_dataloader())
    assert [len(batch.query_y) for batch in batches] == [3, 3, 1]
    whole = toys(per_batch=3)
    whole.setup("test")
    assert same(batches, list(whole.test_dataloader()))


def test_only_evaluations_are_written(tmp_path):
    data = toys(export=str(tmp_path))
    data.setup(None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["test.npz", "val.npz"]
    assert os.stat(tmp_path / "test.npz").st_mode & 0o777 == 0o644


def test_other_content_is_refused(tmp_path):
    toys(export=str(tmp_path)).setup("test")
    with pytest.raises(UserError, match=r"contains episodes of Toys test \(39 samples\), but the samples of Toys test"):
        toys(shift=1.0, use=str(tmp_path)).setup("test")
    with pytest.raises(UserError, match="are not the same"):
        toys(rotation="classes", use=str(tmp_path)).setup("test")


def test_other_episodes_than_configured_are_refused(tmp_path):
    toys(export=str(tmp_path)).setup("test")
    with pytest.raises(
        UserError, match=r"contains 3-way 1-shot episodes with 2 queries per class, but eval_task asks for 4-way"
    ):
        toys(num_ways=4, use=str(tmp_path)).setup("test")


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
        ({"support": lambda a: a.astype(float)}, "is not a file of episodes"),
        ({"support": lambda a: None}, "is not a file of episodes"),
        ({"query_lengths": lambda a: None}, "is not a file of episodes"),
        ({"header": lambda a: np.frombuffer(b"{}", np.uint8)}, "is not a file of episodes"),
        ({"header": lambda a: np.frombuffer(b"[1]", np.uint8)}, "is not a file of episodes"),
        ({"header": lambda a: None}, "is not a file of episodes"),
    ],
)
def test_damaged_files(tmp_path, changes, words):
    toys(export=str(tmp_path)).setup("test")
    path = tmp_path / "test.npz"
    with np.load(path) as file:
        changed = {name: change(file[name]) for name, change in changes.items()}
    forged(path, **changed)
    with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
        toys(use=str(tmp_path)).setup("test")
    assert words in str(caught.value)


def test_pickled_files_are_not_opened(tmp_path):
    path = tmp_path / "test.npz"
    np.savez(path, header=np.array([{"format": 1}], dtype=object))
    with pytest.raises(UserError, match="is not a file of episodes"):
        toys(use=str(tmp_path)).setup("test")


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04 cut off"])
def test_other_files(tmp_path, content):
    (tmp_path / "test.npz").write_bytes(content)
    with pytest.raises(UserError, match="is not a file of episodes"):
        toys(use=str(tmp_path)).setup("test")


def test_missing_files(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        toys(use={"test": str(tmp_path / "tset.npz")}).setup("test")
    with pytest.raises(UserError, match=r"neither val\.npz nor test\.npz"):
        toys(use=str(tmp_path)).setup("test")
    with pytest.raises(UserError, match="must be one of val, test, but is 'train'"):
        toys(use={"train": "x.npz"})
    with pytest.raises(UserError, match="cannot be written"):
        toys(export="/proc/nowhere").setup("test")
    assert not list(tmp_path.iterdir())


def test_generated_tasks_have_no_files(tmp_path):
    with pytest.raises(UserError, match="generates its tasks"):
        episodic(Sinusoids(), export=str(tmp_path)).setup("test")
    assert not list(tmp_path.iterdir())


def test_header_tells_what_it_is(tmp_path):
    data = episodic(Glyphs(), test_episodes=3)
    data.setup("test")
    sampler = data.open("test")
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
    assert same(saved.batch(np.arange(3), torch.device("cpu")), sampler.batch(np.arange(3), torch.device("cpu")))
