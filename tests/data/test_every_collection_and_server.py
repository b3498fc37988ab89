"""Every collection is served in every way, or one sentence says why not."""

import numpy as np
import pytest
import torch
from PIL import Image
from test_cifar_few_shot import binary  # noqa: F401 - a fixture
from test_digit_sets import SETS, made
from test_omniglot import packed  # noqa: F401 - a fixture
from test_torchvision_dataset import fashion  # noqa: F401 - a fixture
from torch.utils.data import Dataset

import metatransfer.data  # noqa: F401 - makes all collections known
from metatransfer import (
    ClassBatches,
    Collection,
    CrossDomainEpisodes,
    DomainBatch,
    DomainDataModule,
    DomainSamples,
    Episode,
    Episodes,
    EpisodicDataModule,
    EvalTask,
    LabelledBatch,
    LabelledDataModule,
    Task,
    Tokens,
    UserError,
)
from metatransfer.batches import episodes_of
from metatransfer.data import collections
from metatransfer.data_info import ServesData, ServesDomains, ServesSamples

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*do not have their 20 drawings"),
    pytest.mark.filterwarnings("ignore:.*are constant in the training samples"),
]


class Numbers(Dataset):
    """Labelled vectors, as learn2learn takes them."""

    def __init__(self, first):
        self.labels = [f"class {first + number % 4}" for number in range(24)]

    def __len__(self):
        return 24

    def __getitem__(self, index):
        return torch.full((3,), float(index)), self.labels[index]


def learn2learn_sets():
    wrap = pytest.importorskip("learn2learn").data.MetaDataset
    return collections.Learn2Learn(train=wrap(Numbers(0)), val=wrap(Numbers(4)), test=wrap(Numbers(8)))


def images(folder):
    for number in range(60):
        path = folder / "images" / f"class{number % 10}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (6, 6), 4 * number).save(path)
    return folder / "images"


def table(folder, columns, row):
    path = folder / "table.csv"
    path.write_text("\n".join([columns, *(row(number) for number in range(60))]) + "\n")
    return str(path)


def image_table(folder):
    root = images(folder)
    rows = [f"{path.relative_to(root)},{path.parent.name}" for path in sorted(root.rglob("*.png"))]
    (folder / "list.csv").write_text("\n".join(["filename,label", *rows]) + "\n")
    return collections.ImageTable(str(folder / "list.csv"), root=str(root), image_size=6, channels=1)


def arrays():
    return collections.Arrays.from_arrays(np.random.default_rng(0).random((60, 5)).astype("f4"), np.arange(60) % 10)


# how each is made small; with a fixture's name where its files are made elsewhere
SMALL = {
    "Arrays": lambda folder: arrays(),
    "Babi": lambda folder: collections.Babi(stories=20),
    "CIFARFewShot": ("binary", lambda root: collections.CIFARFewShot(str(root))),
    "Digits": lambda folder: collections.Digits(8),
    "GaussianProcesses": lambda folder: collections.GaussianProcesses(),
    "Glyphs": lambda folder: collections.Glyphs(),
    "ImageFolder": lambda folder: collections.ImageFolder(str(images(folder)), image_size=6, channels=1),
    "ImageTable": image_table,
    "Learn2Learn": lambda folder: learn2learn_sets(),
    "MNIST": lambda folder: made(folder, "mnist")[0],
    "MNISTM": lambda folder: made(folder, "mnist-m listed")[0],
    "Omniglot": ("packed", lambda root: collections.Omniglot(str(root), image_size=7)),
    "SVHN": lambda folder: made(folder, "svhn")[0],
    "SYN": lambda folder: made(folder, "syn")[0],
    "Sinusoids": lambda folder: collections.Sinusoids(),
    "SyntheticTables": lambda folder: collections.SyntheticTables(3, 2),
    "Table": lambda folder: collections.Table(
        table(folder, "size,colour,label", lambda n: f"{n % 7},{'rgb'[n % 3]},kind{n % 10}")
    ),
    "Texts": lambda folder: collections.Texts(
        table(folder, "text,label", lambda n: f"{'very ' * (n % 4)}good number {n},kind{n % 10}")
    ),
    "TorchvisionDataset": ("fashion", lambda root: collections.TorchvisionDataset("FashionMNIST", str(root))),
    "TypesetDigits": lambda folder: collections.TypesetDigits(8),
    "USPS": lambda folder: made(folder, "usps")[0],
}


def subclasses(kind):
    return {one for child in kind.__subclasses__() for one in (child, *subclasses(child))}


SHIPPED = sorted(
    kind.__name__
    for kind in subclasses(Collection)
    if kind.__module__.startswith("metatransfer.")
    and not kind.__abstractmethods__
    and kind.__name__ in collections.__all__
)


def episodic(source):
    return EpisodicDataModule(source, Task(2, 1, 1), EvalTask(), Episodes(4, 2, 2, 2))


SERVERS = {
    "episodes": episodic,
    "labelled": lambda source: LabelledDataModule(source, batch_size=10),
    "class batches": lambda source: ClassBatches(episodic(source), batch_size=5),
    "cross-domain": lambda source: CrossDomainEpisodes(episodic(source), {"same": episodic(source)}),
    "domains": lambda source: DomainDataModule({"a": source}, {"b": source}, batch_size=4),
}
REFUSED = {
    **{
        (name, server): "generates"
        for name in ("GaussianProcesses", "Sinusoids", "SyntheticTables")
        for server in ("labelled", "class batches", "domains")
    },
    **{(name, "domains"): "domain adaptation needs vectors or images" for name in ("Babi", "Texts")},
    **{(name, "cross-domain"): "texts" for name in ("Babi", "Texts")},
    # the small one has two drawings of each character
    **{("Omniglot", server): "has 2 samples, but needs one for each" for server in ("labelled", "domains")},
}


@pytest.fixture
def collection(request, tmp_path, monkeypatch):
    monkeypatch.setenv("METATRANSFER_CACHE", str(tmp_path / "cache"))
    make = SMALL[request.param]
    return make(tmp_path) if callable(make) else make[1](request.getfixturevalue(make[0]))


def test_every_collection_has_a_small_one():
    assert set(SHIPPED) == set(SMALL)
    assert {"mnist", "usps", "svhn", "syn"} <= set(SETS)


def first(loader):
    return next(iter(loader[-1] if isinstance(loader, list) else loader))


def size(x):
    return len(x.ids if isinstance(x, Tokens) else x)


def check(batch, data):
    """A batch of the kind and size that the data module says."""
    if isinstance(batch, Episode | list):
        for episode in episodes_of(batch):
            assert episode.support_y.shape[:2] == (2, 2) or episode.support_y.shape[:2] == (2, 1)
            assert episode.classes is None or episode.classes.shape == (2, 2)
        return
    if isinstance(batch, DomainBatch):
        assert len(batch.source_y) == len(batch.target_x) == 4
        return
    assert isinstance(batch, LabelledBatch | DomainSamples)
    assert size(batch.x) == len(batch.y) > 0
    assert int(batch.y.max()) < len(data.info().class_names)


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("collection", SHIPPED, indirect=True)
def test_served_or_one_sentence(collection, server, request):
    name = type(collection).__name__
    if (name, server) in REFUSED:
        with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
            SERVERS[server](collection).setup(None if server != "domains" else "fit")
        assert REFUSED[name, server] in str(caught.value)
        return
    data = SERVERS[server](collection)
    data.setup("fit")
    info = data.info()
    assert isinstance(first(data.train_dataloader()), info.batch)
    for loader in (data.train_dataloader(), data.val_dataloader()):
        check(first(loader), data)
    data.setup("test")
    check(first(data.test_dataloader()), data)
    assert isinstance(data, ServesData)
    assert isinstance(data, ServesSamples) == (server == "labelled")
    assert isinstance(data, ServesDomains) == (server == "domains")
    assert data.protocol()["data"] in (name, type(data).__name__)
    batch = first(data.train_dataloader())
    x = getattr(batch, "support_x", getattr(batch, "source_x", getattr(batch, "x", None)))
    if not isinstance(x, Tokens):
        assert tuple(x.shape[-len(info.sample_shape) :]) == info.sample_shape
