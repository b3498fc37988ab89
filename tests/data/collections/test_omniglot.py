"""Omniglot: the published splits, where it lies, how it looks, what is refused."""

import io
import zipfile

import pytest
import torch
from metatransfer.data.omniglot_episodes import OmniglotEpisodes, vinyals_split
from PIL import Image, ImageDraw

from metatransfer.data import omniglot_episodes
from metatransfer.errors import UserError

BACKGROUND_SIZES = {
    "Alphabet_of_the_Magi": 20, "Anglo-Saxon_Futhorc": 29, "Arcadian": 26, "Armenian": 41, "Asomtavruli_(Georgian)": 40,
    "Balinese": 24, "Bengali": 46, "Blackfoot_(Canadian_Aboriginal_Syllabics)": 14, "Braille": 26,
    "Burmese_(Myanmar)": 34, "Cyrillic": 33, "Early_Aramaic": 22, "Futurama": 26, "Grantha": 43, "Greek": 24,
    "Gujarati": 48, "Hebrew": 22, "Inuktitut_(Canadian_Aboriginal_Syllabics)": 16, "Japanese_(hiragana)": 52,
    "Japanese_(katakana)": 47, "Korean": 40, "Latin": 26, "Malay_(Jawi_-_Arabic)": 40, "Mkhedruli_(Georgian)": 41,
    "N_Ko": 33, "Ojibwe_(Canadian_Aboriginal_Syllabics)": 14, "Sanskrit": 42, "Syriac_(Estrangelo)": 23, "Tagalog": 17,
    "Tifinagh": 55,
}  # fmt: skip
EVALUATION_SIZES = {
    "Angelic": 20, "Atemayar_Qelisayer": 26, "Atlantean": 26, "Aurek-Besh": 26, "Avesta": 26, "Ge_ez": 26,
    "Glagolitic": 45, "Gurmukhi": 45, "Kannada": 41, "Keble": 26, "Malayalam": 47, "Manipuri": 40, "Mongolian": 30,
    "Old_Church_Slavonic_(Cyrillic)": 45, "Oriya": 46, "Sylheti": 28, "Syriac_(Serto)": 23, "Tengwar": 25,
    "Tibetan": 42, "ULOG": 26,
}  # fmt: skip
PARTS = {"images_background": BACKGROUND_SIZES, "images_evaluation": EVALUATION_SIZES}
SHAPE = {"num_ways": 5, "num_shots": 1, "num_queries": 1, "tasks_per_batch": 2, "image_size": 7}


def drawing(seed):
    """1-bit, ink 0 on paper 1, as the original."""
    image = Image.new("1", (21, 21), 1)
    pen = ImageDraw.Draw(image)
    pen.line([(seed % 19, 2), (10, 4 + seed % 13)], fill=0, width=2)
    content = io.BytesIO()
    image.save(content, "png")
    return content.getvalue()


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Both zips, complete in their characters, two drawings each."""
    root = tmp_path_factory.mktemp("omniglot") / "omniglot-py"
    root.mkdir()
    images = [drawing(seed) for seed in range(19)]
    for name, sizes in PARTS.items():
        with zipfile.ZipFile(root / f"{name}.zip", "w") as archive:
            for a, (alphabet, size) in enumerate(sizes.items()):
                for c in range(1, size + 1):
                    for i in range(2):
                        archive.writestr(f"{name}/{alphabet}/character{c:02d}/{a}_{i}.png", images[(a + c + i) % 19])
    return root.parent


@pytest.fixture(autouse=True)
def _cache(packed, monkeypatch):
    monkeypatch.setenv("METATRANSFER_CACHE", str(packed / "cache"))


def omniglot(root, *stages, **options):
    data = OmniglotEpisodes(str(root), **{**SHAPE, **options})
    for stage in stages or (None,):
        with pytest.warns(UserWarning, match="do not have their 20 drawings"):
            data.setup(stage)
    return data


def bases(data):
    """What is served without its rotations."""
    return {split: getattr(one.source, "base", one.source) for split, one in data.samplers.items()}


def test_the_published_list():
    splits = {split: vinyals_split(split) for split in ("train", "val", "test")}
    assert {split: len(names) for split, names in splits.items()} == {"train": 1028, "val": 172, "test": 423}
    everything = set().union(*splits.values())
    complete = {
        f"{alphabet}/character{c:02d}"
        for sizes in PARTS.values()
        for alphabet, size in sizes.items()
        for c in range(1, size + 1)
    }
    assert everything == complete
    assert len(everything) == 1623
    assert splits["train"][0] == "Angelic/character01"
    assert splits["test"][:5] == (*(f"Gurmukhi/character{c}" for c in range(42, 46)), "Kannada/character01")


def test_vinyals(packed):
    data = omniglot(packed)
    assert {split: len(one.source.class_names) for split, one in data.samplers.items()} == {
        "train": 4112, "val": 688, "test": 1692,
    }  # fmt: skip
    assert {split: len(source.class_names) for split, source in bases(data).items()} == {
        "train": 1028, "val": 172, "test": 423,
    }  # fmt: skip
    assert bases(data)["val"].class_names == vinyals_split("val")
    assert bases(data)["val"].groups[0] == "Hebrew"
    assert data.skipped == {"train": 0, "val": 0, "test": 0}
    says = data.protocol()
    assert says["split"].startswith("vinyals")
    assert says["rotations"] == {"train": "classes", "val": "classes", "test": "classes"}
    batch = next(iter(data.train_dataloader()))
    assert batch.support_x.shape == (2, 5, 1, 7, 7)
    assert batch.support_x.mean() < 0.5  # paper is low


def test_maml(packed):
    data = omniglot(packed, protocol="maml")
    sources = bases(data)
    assert {split: len(source.class_names) for split, source in sources.items()} == {
        "train": 1100, "val": 100, "test": 423,
    }  # fmt: skip
    assert len(set().union(*(source.class_names for source in sources.values()))) == 1623
    assert set(data.rotations.values()) == {"per_class"}
    assert sources["test"].class_names[:2] == PINNED
    assert not data.group_by


PINNED = ("Asomtavruli_(Georgian)/character31", "Tibetan/character02")


def test_lake(packed):
    data = omniglot(packed, protocol="lake")
    sources = bases(data)
    assert {split: len(set(source.groups)) for split, source in sources.items()} == {"train": 25, "val": 5, "test": 20}
    assert {split: len(source.class_names) for split, source in sources.items()} == {
        "train": 793, "val": 171, "test": 659,
    }  # fmt: skip
    assert set(sources["test"].groups) == set(EVALUATION_SIZES)
    assert min(sources["val"].groups.count(group) for group in set(sources["val"].groups)) >= 20
    assert data.group_by
    sampler = data.samplers["test"]
    drawn = sampler(torch.arange(30).numpy())
    for classes in drawn.classes:
        assert len({sampler.source.groups[index] for index in classes}) == 1


def test_tree_zip_and_inner_folder_give_the_same(packed, tmp_path):
    first = omniglot(packed, "test")
    for name in PARTS:
        with zipfile.ZipFile(packed / "omniglot-py" / f"{name}.zip") as archive:
            archive.extractall(tmp_path)
    for root in (packed / "omniglot-py", tmp_path):
        other = omniglot(root, "test")
        assert torch.equal(bases(other)["test"].data, bases(first)["test"].data)
        assert bases(other)["test"].class_names == bases(first)["test"].class_names


def test_ink_is_high_and_convert_image_agrees(packed):
    data = omniglot(packed, "test")
    source = bases(data)["test"]
    assert source.data.max() > 100
    alphabet = source.class_names[5].partition("/")[0]
    with zipfile.ZipFile(packed / "omniglot-py" / "images_evaluation.zip") as archive:
        names = [n for n in archive.namelist() if n.startswith(f"images_evaluation/{source.class_names[5]}/")]
        with Image.open(archive.open(min(names))) as image:
            sample = data.convert_image(image)
    assert alphabet in names[0]
    assert torch.equal(sample, source.read(torch.tensor(10), torch.device("cpu")))
    assert data.convert_image(Image.new("RGB", (30, 40), "white")).max() == 0


def test_incomplete_parts_are_refused(packed, tmp_path):
    with zipfile.ZipFile(packed / "omniglot-py" / "images_background.zip") as archive:
        archive.extractall(tmp_path)
    with pytest.raises(UserError, match=r"put images_evaluation\.zip \(from https://.*\) or the folder .* there"):
        OmniglotEpisodes(str(tmp_path), **SHAPE).setup("fit")
    (tmp_path / "images_evaluation" / "Angelic" / "character01").mkdir(parents=True)
    with pytest.raises(UserError, match=r"images_evaluation' has 1 characters in 1 alphabets, .* has 659"):
        OmniglotEpisodes(str(tmp_path), **SHAPE).setup("fit")


def test_other_names_are_refused(packed, tmp_path):
    for name in PARTS:
        with zipfile.ZipFile(packed / "omniglot-py" / f"{name}.zip") as archive:
            archive.extractall(tmp_path)
    (tmp_path / "images_evaluation" / "Keble").rename(tmp_path / "images_evaluation" / "Quenya")
    with pytest.raises(UserError, match=r"lacks 26 characters of the test split, e\.g\. Keble/character01"):
        OmniglotEpisodes(str(tmp_path), **SHAPE).setup("test")


def test_bad_drawings_are_named_or_counted(packed, tmp_path):
    for name in PARTS:
        with zipfile.ZipFile(packed / "omniglot-py" / f"{name}.zip") as archive:
            archive.extractall(tmp_path)
    bad = sorted((tmp_path / "images_evaluation" / "Tibetan" / "character07").iterdir())[0]
    bad.write_bytes(b"x")
    with pytest.raises(UserError, match=r"Tibetan/character07/.*\.png' cannot be read as an image"):
        omniglot(tmp_path, "test")
    bad.with_name("another.png").write_bytes(drawing(1))
    data = omniglot(tmp_path, "test", on_bad_sample="skip")
    assert data.skipped == {"test": 1}


def test_download_fetches_what_is_missing(packed, tmp_path, monkeypatch):
    asked = []

    def fake(urls, md5, target):
        asked.append((urls, md5, target.name))
        target.write_bytes((packed / "omniglot-py" / target.name).read_bytes())

    monkeypatch.setattr(omniglot_episodes, "fetch", fake)
    data = OmniglotEpisodes(str(tmp_path), download=True, **SHAPE)
    data.prepare_data()
    assert [name for _, _, name in asked] == ["images_background.zip", "images_evaluation.zip"]
    assert all(len(urls) >= 2 and len(md5) == 32 for urls, md5, _ in asked)
    omniglot(tmp_path, "test", download=True)
    assert len(asked) == 2


def test_no_network(tmp_path, monkeypatch):
    monkeypatch.setattr(omniglot_episodes, "_MIRRORS", ("http://127.0.0.1:9",))
    data = OmniglotEpisodes(str(tmp_path), download=True, **SHAPE)
    data.prepare_data()  # says nothing: setup does, in every process
    with pytest.raises(UserError, match=r"images_background\.zip could not be downloaded .* put it at '.*zip'"):
        data.setup("fit")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"protocol": "vinyal"}, "protocol must be one of vinyals, maml, lake, but is 'vinyal'. Did you mean vinyals"),
        ({"on_bad_sample": "no"}, "on_bad_sample must be one of error, skip"),
        ({"image_size": 0}, "image_size must be a number above 0"),
    ],
)
def test_impossible_arguments(options, words):
    with pytest.raises(UserError, match=words):
        OmniglotEpisodes("x", **{**SHAPE, **options})
