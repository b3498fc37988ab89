"""Omniglot: the published splits, where it lies, how it looks, what is refused."""

import io
import json
import zipfile

import pytest
import torch
from image_trees import write_zip
from PIL import Image, ImageDraw

from conftest import ROOT, results
from metatransfer import Episodes, EpisodicDataModule, EvalTask, Task
from metatransfer.data.collections import Omniglot
from metatransfer.data.collections import omniglot as module
from metatransfer.data.collections.omniglot import vinyals_split
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


def omniglot(root, *splits, **options):
    """The collection with some splits opened; of each character there are two drawings only."""
    data = Omniglot(str(root), **{"image_size": 7, **options})
    for split in splits:
        with pytest.warns(UserWarning, match="do not have their 20 drawings"):
            data.opened()[split]
    return data


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
    data = omniglot(packed, "train", "val", "test")
    sources = data.opened()
    assert {split: len(source.class_names) for split, source in sources.items()} == {
        "train": 1028, "val": 172, "test": 423,
    }  # fmt: skip
    assert sources["val"].class_names == vinyals_split("val")
    assert sources["val"].groups[0] == "Hebrew"
    assert data.skipped == {"train": 0, "val": 0, "test": 0}
    assert data.protocol()["split"].startswith("vinyals")
    assert data.rotations == {"train": "classes", "val": "classes", "test": "classes"}
    assert sources["test"].sample_shape == (1, 7, 7)


def test_maml(packed):
    data = omniglot(packed, "train", "val", "test", protocol="maml")
    sources = data.opened()
    assert {split: len(source.class_names) for split, source in sources.items()} == {
        "train": 1100, "val": 100, "test": 423,
    }  # fmt: skip
    assert len(set().union(*(source.class_names for source in sources.values()))) == 1623
    assert set(data.rotations.values()) == {"per_class"}
    assert sources["test"].class_names[:2] == PINNED
    assert not data.within_groups


PINNED = ("Asomtavruli_(Georgian)/character31", "Tibetan/character02")


def test_lake(packed):
    data = omniglot(packed, "train", "val", "test", protocol="lake")
    sources = data.opened()
    assert {split: len(set(source.groups)) for split, source in sources.items()} == {"train": 25, "val": 5, "test": 20}
    assert {split: len(source.class_names) for split, source in sources.items()} == {
        "train": 793, "val": 171, "test": 659,
    }  # fmt: skip
    assert set(sources["test"].groups) == set(EVALUATION_SIZES)
    assert min(sources["val"].groups.count(group) for group in set(sources["val"].groups)) >= 20
    assert data.within_groups


def write_runs(root, runs=2, ways=20):
    """Lake's layout: the item of each line is a shifted copy of the drawing of its class."""
    for run in range(1, runs + 1):
        lines = []
        for folder in ("training", "test"):
            (root / f"run{run:02d}" / folder).mkdir(parents=True)
        for c in range(ways):
            item = (7 * c + run) % ways
            image = Image.new("1", (21, 21), 1)
            ImageDraw.Draw(image).rectangle([c, run, c + 1, run + 8], fill=0)
            image.save(root / f"run{run:02d}" / "training" / f"class{c + 1:02d}.png")
            ImageDraw.Draw(image).point([c, run], fill=1)
            image.save(root / f"run{run:02d}" / "test" / f"item{item + 1:02d}.png")
            line = f"run{run:02d}/test/item{item + 1:02d}.png run{run:02d}/training/class{c + 1:02d}.png\n"
            lines.append((item, line))
        (root / f"run{run:02d}" / "class_labels.txt").write_text("".join(line for _, line in sorted(lines)))
    return root


def runs_of(packed, runs, **options):
    source = Omniglot(str(packed), protocol="lake", image_size=21, runs=str(runs))
    return EpisodicDataModule(source, Task(20, 1, 1), EvalTask(**options), Episodes(20, 4, 600, 4))


@pytest.mark.parametrize("packed_runs", [False, True])
def test_the_published_runs_are_the_test(packed, tmp_path, packed_runs):
    root = write_runs(tmp_path / "all_runs")
    data = runs_of(packed, write_zip(tmp_path / "r.zip", root, "all_runs/") if packed_runs else root)
    data.setup("test")
    [batch] = data.test_dataloader()  # two episodes, not the 600 that were asked for
    assert batch.support_x.shape == batch.query_x.shape == (2, 20, 1, 21, 21)
    assert batch.support_y.tolist() == [list(range(20))] * 2
    # the query of item i is one pixel away from the drawing of its class, and of no other
    distance = (batch.query_x[:, :, None] - batch.support_x[:, None]).abs().flatten(3).sum(-1)
    assert torch.equal(distance.argmin(-1), batch.query_y)
    assert not torch.equal(batch.query_y[0], batch.support_y[0])  # the order of the queries tells nothing
    assert data.protocol()["split"].endswith("test on the published one-shot runs)")
    assert data.protocol()["episodes"]["test"] == 2


def test_one_command_trains_on_the_background_and_scores_the_published_runs(packed, tmp_path, cli):
    write_zip(packed / "all_runs.zip", write_runs(tmp_path / "all_runs", runs=20), "all_runs/")
    with pytest.warns(UserWarning, match="do not have their 20 drawings"):
        run = cli(
            "fit", ROOT / "configs/omniglot/lake.yaml", "--data.source.root", packed, "--data.source.image_size=21",
            "--data.task.num_ways=5", "--data.task.num_queries=1", "--data.episodes.train=2",
            "--data.episodes.val=2", "--trainer.max_epochs=1", "--model.backbone.hidden_channels=8", small=False,
        )  # fmt: skip
    found = json.loads((run / "results-test.json").read_text())
    assert found["stage"] == "test"
    assert found["episodes"] == 20
    assert found["protocol"]["data"]["split"].endswith("test on the published one-shot runs)")
    assert found["checkpoint"].endswith(results(run)["checkpoint"].rpartition("/")[2])
    # one pixel away from the drawing of its class; in the last run, what is left of some drawings is one pixel
    assert found["baselines"]["pixel 1-NN"]["accuracy"]["value"] > 0.95
    assert found["metrics"]["accuracy"]["value"] > 0.5


def test_runs_that_are_not_as_published(packed, tmp_path):
    root = write_runs(tmp_path / "runs")
    with pytest.raises(UserError, match=r"num_queries=1\), but eval_task is .*num_queries=5"):
        runs_of(packed, root, num_queries=5).setup("test")
    labels = root / "run02" / "class_labels.txt"
    lines = labels.read_text()
    for content, words in (
        (lines.replace("item03", "item77"), r"has no run02/test/item77\.png, which its class_labels"),
        (lines.splitlines()[0], "must hold runs of one size"),
        (lines.replace("class08", "class09"), "with one test drawing per class"),
        ("one two three", r"but run02 does not: get all_runs"),
    ):
        labels.write_text(content)
        with pytest.raises(UserError, match=words):
            runs_of(packed, root).setup("test")
    with pytest.raises(UserError, match="set it to lake"):
        Omniglot("x", runs="all_runs")


def test_tree_zip_and_inner_folder_give_the_same(packed, tmp_path):
    first = omniglot(packed, "test").opened()["test"]
    for name in PARTS:
        with zipfile.ZipFile(packed / "omniglot-py" / f"{name}.zip") as archive:
            archive.extractall(tmp_path)
    for root in (packed / "omniglot-py", tmp_path):
        other = omniglot(root, "test").opened()["test"]
        assert torch.equal(other.data, first.data)
        assert other.class_names == first.class_names


def test_ink_is_high_and_converted_images_agree(packed):
    data = omniglot(packed, "test")
    source = data.opened()["test"]
    assert source.data.max() > 100
    assert source.data.float().mean() < 128  # paper is low
    with zipfile.ZipFile(packed / "omniglot-py" / "images_evaluation.zip") as archive:
        names = [n for n in archive.namelist() if n.startswith(f"images_evaluation/{source.class_names[5]}/")]
        with Image.open(archive.open(min(names))) as image:
            sample = data.convert(image)
    assert torch.equal(sample, source.read(torch.tensor(10), torch.device("cpu")))
    assert data.convert(Image.new("RGB", (30, 40), "white")).max() == 0


def test_incomplete_parts_are_refused(packed, tmp_path):
    with zipfile.ZipFile(packed / "omniglot-py" / "images_background.zip") as archive:
        archive.extractall(tmp_path)
    with pytest.raises(UserError, match=r"put images_evaluation\.zip \(from https://.*\) or the folder .* there"):
        omniglot(tmp_path).opened()["train"]
    (tmp_path / "images_evaluation" / "Angelic" / "character01").mkdir(parents=True)
    with pytest.raises(UserError, match=r"images_evaluation' has 1 characters in 1 alphabets, .* has 659"):
        omniglot(tmp_path).opened()["train"]


def test_other_names_are_refused(packed, tmp_path):
    for name in PARTS:
        with zipfile.ZipFile(packed / "omniglot-py" / f"{name}.zip") as archive:
            archive.extractall(tmp_path)
    (tmp_path / "images_evaluation" / "Keble").rename(tmp_path / "images_evaluation" / "Quenya")
    with pytest.raises(UserError, match=r"lacks 26 characters of the test split, e\.g\. Keble/character01"):
        omniglot(tmp_path).opened()["test"]


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

    monkeypatch.setattr(module, "fetch", fake)
    data = omniglot(tmp_path, download=True)
    data.prepare()
    assert [name for _, _, name in asked] == ["images_background.zip", "images_evaluation.zip"]
    assert all(len(urls) >= 2 and len(md5) == 32 for urls, md5, _ in asked)
    omniglot(tmp_path, "test", download=True)
    assert len(asked) == 2


def test_no_network(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_MIRRORS", ("http://127.0.0.1:9",))
    data = omniglot(tmp_path, download=True)
    data.prepare()  # says nothing: parts does, in every process
    with pytest.raises(UserError, match=r"images_background\.zip could not be downloaded .* put it at '.*zip'"):
        data.opened()["train"]


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
        Omniglot("x", **options)
