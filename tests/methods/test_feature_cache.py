"""The cache of features: what its key depends on, what damage does to it, and the sentence of every mistake."""

from __future__ import annotations

import copy
import importlib.util
import os
import sys

import numpy as np
import pytest
import torch
from torch import nn

from metatransfer import Conv4, UserError
from metatransfer.methods.fitted import cached_features
from metatransfer.module_keys import module_key, shown
from metatransfer.nn import Backbone, load_weights
from processes import exit_code, started


class Plain(Backbone):
    """A linear layer with a number that no checkpoint keeps."""

    def __init__(self, size=3, factor=1.0, weights=None):
        super().__init__()
        self.layer, self.out_features = nn.Linear(2, size), size
        self.register_buffer("shift", torch.tensor(0.0), persistent=False)
        self.register_buffer("count", torch.zeros(0))
        self.load_weights(weights)

    def forward(self, x):
        return self.layer(x) + self.shift


X = torch.rand(10, 2, generator=torch.Generator().manual_seed(0))


def network(seed=0, **arguments):
    torch.manual_seed(seed)
    return Plain(**arguments).eval()


class Batches:
    """The samples in parts; counts how often they are asked for."""

    def __init__(self, backbone, order=None):
        self.backbone, self.asked = backbone, 0
        self.order = torch.arange(10) if order is None else order

    def __call__(self):
        self.asked += 1
        with torch.no_grad():
            for rows in self.order.split(4):
                yield rows, self.backbone(X[rows])


def cached(folder, backbone, content="one", batches=None):
    return cached_features(backbone, content, batches or Batches(backbone), 10, str(folder))


def entry(folder):
    (path,) = folder.glob("*.npy")
    return path


def test_computed_once_and_read_afterwards(tmp_path):
    one = network()
    batches = Batches(one)
    found = [cached(tmp_path, one, batches=batches) for _ in range(3)]
    assert batches.asked == 1
    assert all(np.array_equal(part, one(X).detach().numpy()) for part in found)
    assert all(part.dtype == np.float32 for part in found)
    assert [path.name for path in tmp_path.iterdir()] == [entry(tmp_path).name], "nothing else is left behind"
    # plain numpy reads the file, whatever stands behind the array
    assert np.array_equal(np.load(entry(tmp_path), allow_pickle=False), found[0])


def test_any_order_of_computation(tmp_path):
    one = network()
    found = cached(tmp_path, one, batches=Batches(one, torch.randperm(10)))
    np.testing.assert_allclose(found, one(X).detach().numpy(), rtol=1e-6)


def test_the_key_is_that_of_all_that_features_depend_on(tmp_path):
    one = network()
    first = module_key(one)
    assert module_key(network()) == module_key(copy.deepcopy(one)) == first
    others = [network(1), network(size=4), network(factor=2.0), Conv4(hidden_channels=4).eval()]
    for change in ("layer.weight", "layer.bias"):
        other = copy.deepcopy(one)
        with torch.no_grad():
            other.get_parameter(change)[0] += 1e-6
        others.append(other)
    for value in (torch.tensor(0.5), torch.zeros(1)):
        other = copy.deepcopy(one)
        other.shift = value
        others.append(other)
    others.append(copy.deepcopy(one).double())
    assert len({first, *map(module_key, others)}) == 1 + len(others)
    assert module_key(copy.deepcopy(one).requires_grad_(False)) == first

    # another content is another entry
    batches = Batches(one)
    for content in ("one", "two", "one"):
        cached(tmp_path, one, content, batches)
    assert batches.asked == 2
    assert len(list(tmp_path.glob("*.npy"))) == 2


def test_where_the_weights_lie_is_no_part_of_the_key(tmp_path):
    torch.save(network(5).state_dict(), tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes((tmp_path / "a.pt").read_bytes())
    one, two = (network(seed, weights=str(tmp_path / f"{name}.pt")) for seed, name in enumerate("ab"))
    three = network(9)
    load_weights(three, tmp_path / "a.pt")
    assert module_key(one) == module_key(two) == module_key(three) == module_key(network(5))


SOURCE = """
import torch
from torch import nn
from metatransfer import Backbone

POWER = {power}

def pooled(x):
    return x.{pooling}((2, 3))

class Pooled(Backbone):
    def __init__(self, width=8):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.out_features, self._slope = nn.Conv2d(1, width, 3), width, 1.0

    def forward(self, x):
        return pooled(self.conv(x).relu() ** POWER) * self._slope
"""


def written(folder, name="net", power=1, pooling="mean", head=""):
    (folder / f"{name}.py").write_text(head + SOURCE.format(power=power, pooling=pooling))
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    sys.modules[name] = found
    spec.loader.exec_module(found)
    return found.Pooled()


def test_the_users_own_code_and_attributes_are_part_of_the_key(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    first = written(tmp_path)
    steeper = written(tmp_path)
    steeper._slope = 2.0
    others = [written(tmp_path, pooling="amax"), written(tmp_path, power=2), written(tmp_path, "other"), steeper]
    assert len({module_key(one) for one in [first, *others]}) == 5
    assert module_key(written(tmp_path, head="import os")) == module_key(first), "the same code on another line"


def write_key(folder):
    (folder / "key.txt").write_text(f"{hash('a')} {module_key(written(folder))}")


def test_a_key_is_that_of_another_process(tmp_path):
    assert exit_code(started(write_key, tmp_path)) == 0
    hashed, key = (tmp_path / "key.txt").read_text().split()
    assert key == module_key(written(tmp_path))
    assert hashed != str(hash("a")) or "PYTHONHASHSEED" in os.environ, "a process with the same seed of hashes"


def test_transforms_of_ones_own_are_shown_apart():
    assert shown(nn.ReLU()) == "ReLU()"
    one, two, three = Gamma(1.0), Gamma(3.0), Gamma(1.0)
    assert shown(one) == shown(three) != shown(two)
    assert shown(one).startswith("Gamma() [")


class Gamma(nn.Module):
    def __init__(self, power):
        super().__init__()
        self.power = power

    def forward(self, x):
        return x**self.power


def cut(path):
    path.write_bytes(path.read_bytes()[:-50])


def cut_the_checksum(path):
    path.write_bytes(path.read_bytes()[:-1])


def empty(path):
    path.write_bytes(b"")


def flip(path):
    content = bytearray(path.read_bytes())
    content[140] ^= 1
    path.write_bytes(content)


def flip_the_header(path):
    content = bytearray(path.read_bytes())
    content[20] ^= 0xFF
    path.write_bytes(content)


def zeros(path):
    path.write_bytes(bytes(path.stat().st_size))


def another_array(path):
    np.save(path, np.zeros((10, 3)))


DAMAGES = [cut, cut_the_checksum, empty, flip, flip_the_header, zeros, another_array]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_entry_is_computed_anew(damage, tmp_path):
    one = network()
    batches = Batches(one)
    whole = cached(tmp_path, one, batches=batches)
    content = entry(tmp_path).read_bytes()
    damage(entry(tmp_path))
    assert np.array_equal(cached(tmp_path, one, batches=batches), whole)
    assert batches.asked == 2
    assert entry(tmp_path).read_bytes() == content
    cached(tmp_path, one, batches=batches)
    assert batches.asked == 2


def test_what_stops_in_the_middle_leaves_nothing(tmp_path):
    one = network()

    def stopped():
        yield torch.arange(4), one(X[:4]).detach()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached(tmp_path, one, batches=stopped)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_features_that_are_no_numbers_name_the_network_and_the_sample(value, tmp_path):
    one = network()

    def spoiled():
        for rows, features in Batches(one, torch.arange(10).flip(0))():
            features[rows == 2] = value
            yield rows, features

    with pytest.raises(UserError, match="Plain computes features that are NaN or infinite, first for sample 2: check"):
        cached(tmp_path, one, batches=spoiled)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_one_sentence_before_the_work(tmp_path):
    one = network()
    batches = Batches(one)
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=r"folder of cached features .*METATRANSFER_CACHE\) '.*file.*' cannot be"):
            cached(folder, one, batches=batches)
    assert batches.asked == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to the superuser")
def test_a_read_only_folder_is_read_and_not_written(tmp_path):
    one = network()
    cached(tmp_path, one)
    tmp_path.chmod(0o500)
    try:
        assert np.array_equal(cached(tmp_path, one), one(X).detach().numpy())
        with pytest.raises(UserError, match="cannot be written"):
            cached(tmp_path, one, "two")
    finally:
        tmp_path.chmod(0o700)


def test_a_full_disk_loses_no_work(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    one = network()
    with pytest.warns(UserWarning, match=r"features could not be saved in '.*' \(No space left on device\)"):
        assert np.array_equal(cached(tmp_path, one), one(X).detach().numpy())
    assert not list(tmp_path.iterdir())


def test_a_sample_that_cannot_be_read_is_not_the_cache_s_fault(tmp_path):
    def unreadable():
        yield torch.arange(4), torch.zeros(4, 3)
        raise FileNotFoundError(2, "No such file or directory", "photo.png")

    with pytest.raises(FileNotFoundError, match=r"photo\.png"):
        cached(tmp_path, network(), batches=unreadable)
    assert not list(tmp_path.iterdir())
