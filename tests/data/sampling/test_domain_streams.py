"""The order of training samples: endless, without repetition, shared by processes, resumable."""

from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from metatransfer import Arrays, DomainDataModule, ImageFolder
from metatransfer.data.sampling.domains import Side, SideStream


def array(start, count):
    x = (start + np.arange(count, dtype=np.float32))[:, None].repeat(2, 1)
    return Arrays.from_arrays(x, np.arange(count) % 2)


def domains(sources=(50,), targets=(130,), **options):
    given = [
        {f"{side}{place}": array(1000 * (place + 1) + shift, count) for place, count in enumerate(counts)}
        for side, counts, shift in (("s", sources, 0), ("t", targets, 50000))
    ]
    return DomainDataModule(*given, **{"batch_size": 8, **options})


def trainer(epoch=0, batch=0, rank=0, world=1):
    progress = SimpleNamespace(batch_progress=SimpleNamespace(current=SimpleNamespace(ready=batch)))
    return SimpleNamespace(
        global_rank=rank, world_size=world, current_epoch=epoch, overfit_batches=0,
        fit_loop=SimpleNamespace(epoch_loop=progress), strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )  # fmt: skip


def batches(data, **position):
    data.trainer = trainer(**position)
    return list(data.train_dataloader())


def equal(one, two):
    return len(one) == len(two) and all(
        torch.equal(a, b) for pair in zip(one, two, strict=True) for a, b in zip(*pair, strict=True)
    )


def stream(data, epochs, side="source", **position):
    found = [getattr(batch, f"{side}_x")[:, 0] for epoch in range(epochs) for batch in batches(
        data, epoch=epoch, **position)]  # fmt: skip
    return torch.cat(found).int().tolist()


@pytest.mark.parametrize(
    ("sources", "targets", "options", "steps"),
    [
        ((50,), (130,), {}, 91 // 8),
        ((130,), (50,), {}, 91 // 8),
        ((50,), (130,), {"target_batch_size": 2}, 91 // 2),
        ((50, 50), (30,), {"batch_size": 3}, 72 // 3),
        ((10,), (10,), {}, 1),  # fewer samples than a batch has
    ],
)
def test_an_epoch_is_one_pass_of_the_longer_side(sources, targets, options, steps):
    data = domains(sources, targets, **options)
    found = batches(data)
    assert len(found) == len(data.train_dataloader()) == steps
    assert {len(batch.source_x) for batch in found} == {options.get("batch_size", 8)}
    assert {len(batch.target_x) for batch in found} == {options.get("target_batch_size", data.batch_size)}


@pytest.mark.parametrize("batch_size", [5, 8, 36, 100])
def test_passes_are_permutations_in_new_orders(batch_size):
    data = domains(batch_size=batch_size, target_batch_size=7)
    count = sum(data.info().class_counts)
    assert count == 36
    found = stream(data, 2)
    passes = [found[start : start + count] for start in range(0, len(found) - count + 1, count)]
    assert len(passes) >= 3
    assert all(sorted(one) == sorted(passes[0]) and len(set(one)) == count for one in passes)
    assert len({tuple(one) for one in passes}) == len(passes)
    assert passes[0] != sorted(passes[0])


def test_domains_of_one_size_are_shuffled_apart():
    data = domains((50, 50), (50, 50), batch_size=72, target_batch_size=70)
    batch = batches(data)[0]
    orders = [
        getattr(batch, f"{side}_number")[getattr(batch, f"{side}_domain") == place] - size * place
        for side, size in (("source", 36), ("target", 35))
        for place in (0, 1)
    ]
    assert all(sorted(order.tolist()) == list(range(len(order))) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == 4


def test_sources_and_targets_of_one_size_are_shuffled_apart():
    data = domains((50, 50), (51, 51), batch_size=72)
    batch = batches(data)[0]
    orders = [
        (getattr(batch, f"{side}_number")[getattr(batch, f"{side}_domain") == place] - 36 * place).tolist()
        for side in ("source", "target")
        for place in (0, 1)
    ]
    assert all(sorted(order) == list(range(36)) for order in orders)
    for first, second in combinations(orders, 2):
        assert sum(one == other for one, other in zip(first, second, strict=True)) < 10


@pytest.mark.parametrize("counts", [(50,), (50, 20, 31)])
def test_processes_share_the_stream(counts):
    """Disjoint, and together what one process with as large a batch has."""
    data, whole = domains(counts, (130,), batch_size=5), domains(counts, (130,), batch_size=15)
    for epoch in (0, 3):
        ranks = [batches(data, epoch=epoch, rank=rank, world=3) for rank in range(3)]
        alone = batches(whole, epoch=epoch)
        assert {len(one) for one in ranks} == {len(alone)} == {91 // 15}
        for step, batch in enumerate(alone):
            for side in ("source", "target"):
                own = [getattr(one[step], f"{side}_number").tolist() for one in ranks]
                domain = [place for one in ranks for place in getattr(one[step], f"{side}_domain").tolist()]
                assert len({tuple(one) for one in own}) == 3
                together = sorted(number for one in own for number in one)
                assert together == sorted(getattr(batch, f"{side}_number").tolist())
                assert sorted(domain) == sorted(getattr(batch, f"{side}_domain").tolist())
        target = [number for one in ranks for batch in one for number in batch.target_number.tolist()]
        counts_of = np.bincount(target, minlength=91)
        # an epoch of 90 of 91 samples: no sample twice but those at the seam of two passes
        assert counts_of.max() == (1 if epoch == 0 else 2)


def test_resuming_in_the_middle_of_an_epoch():
    data = domains((50, 21), (130,))
    for epoch in (0, 2):
        full = batches(data, epoch=epoch)
        assert len(full) == 11
        for done in (1, 4, 10):
            assert equal(batches(domains((50, 21), (130,)), epoch=epoch, batch=done), full[done:])
    assert not equal(batches(data, epoch=0), batches(data, epoch=1))
    state = data.train_dataloader().state_dict()
    data.train_dataloader().load_state_dict(state)
    assert state == {}


def test_epochs_go_on_where_the_last_one_ended():
    found = stream(domains(targets=(130,)), 5, "target")
    count = 91
    passes = [found[start : start + count] for start in range(0, len(found) - count + 1, count)]
    assert len(passes) == 4
    assert all(len(set(one)) == count for one in passes)


def test_shares_differ_by_one_and_take_turns():
    data = domains((50, 50, 50), (50,), batch_size=7)
    data.setup("fit")
    of_side = SideStream(data._side("sources"), 7)
    shares = np.array([[len(rows) for rows in of_side.places(batch)] for batch in range(12)])
    assert (shares.sum(1) == 7).all()
    assert set(shares.flatten()) == {2, 3}
    assert shares.sum(0).tolist() == [28, 28, 28]
    for place in range(3):
        rows = np.concatenate([of_side.places(batch)[place] for batch in range(12)])
        assert rows.tolist() == list(range(28))


def test_numbers_of_several_domains():
    data = domains((50, 21), (30, 10))
    side = data._side("targets")
    assert isinstance(side, Side)
    assert side.starts("train").tolist() == [0, 21, 28]
    assert len(side.labels("train")) == 28
    domain, own = side.place("train", 21)
    assert (domain.name, own) == ("t1", 0)
    assert side.place("train", 20)[1] == 20


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.setenv("METATRANSFER_CACHE", str(tmp_path / "cache"))
    for number in range(24):
        folder = tmp_path / "images" / ("cat" if number % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (6, 6), 10 * number).save(folder / f"{number}.png")
    return tmp_path / "images"


def test_workers_serve_the_same(folders):
    def data(workers):
        kind = {"image_size": 6, "channels": 1}
        source = ImageFolder(str(folders), **kind, memory_limit=1)
        target = ImageFolder(str(folders), **kind)
        found = DomainDataModule({"a": source}, {"b": target}, batch_size=5, num_workers=workers)
        found.setup("fit")
        return found

    one, two = data(0), data(2)
    assert two.train_dataloader().num_workers == 2
    assert two.val_dataloader()[1].num_workers == 0
    assert equal(list(one.train_dataloader()), list(two.train_dataloader()))
    assert equal(list(one.val_dataloader()[0]), list(two.val_dataloader()[0]))
    assert len(list(one.train_dataloader())) == 3
