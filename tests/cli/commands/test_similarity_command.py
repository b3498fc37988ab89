"""``lightning similarity`` through its two functions."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from jsonargparse import ArgumentParser
from PIL import Image

from messages import keep
from metatransfer import Conv4
from metatransfer.cli.commands import similarity
from metatransfer.errors import UserError
from metatransfer.experiments.similarity import distances


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder with a table and a folder of images."""
    monkeypatch.chdir(tmp_path)
    make = np.random.default_rng(0)
    for name, shift in (("near.csv", 0), ("far.csv", 5)):
        rows = [f"{make.normal(shift + i % 2):.3f},{make.normal():.3f},kind {i % 2}\n" for i in range(30)]
        (tmp_path / name).write_text("length,width,label\n" + "".join(rows))
    for label in ("a", "b"):
        (tmp_path / "pictures" / label).mkdir(parents=True)
        for number in range(6):
            pixels = make.integers(0, 256, (20, 20, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / label / f"{number}.png")
    return tmp_path


def command(*words):
    parser = ArgumentParser(exit_on_error=False)
    similarity.arguments(parser)
    similarity.run(parser.instantiate(parser.parse_args(list(words))))


def table(path):
    with path.open() as file:
        return {(row["measure"], row["from"], row["to"]): float(row["distance"]) for row in csv.DictReader(file)}


def test_images_by_name_and_by_path(folder, capsys):
    command("--data", "pictures", "TypesetDigits", "Digits", "--samples", "20", "--measure", "task2vec", "mmd", "leep")
    written = table(folder / "lightning_logs" / "version_0" / "similarity.csv")
    assert len(written) == 3 * 9
    assert written["mmd", "TypesetDigits", "Digits"] < written["mmd", "pictures", "Digits"]
    assert written["task2vec", "Digits", "Digits"] == 0
    with Image.open(folder / "lightning_logs" / "version_0" / "similarity.png") as image:
        assert min(image.size) > 200
    printed = capsys.readouterr().out
    assert "pictures (12 samples, 2 classes)" in printed
    assert "Conv4" in printed
    assert "version_0" in printed
    command("--data", "pictures", "Digits", "--samples", "20", "--measure", "mmd")
    assert (folder / "lightning_logs" / "version_1" / "similarity.csv").is_file()


def test_tables_and_a_folder_of_ones_own(folder):
    for name in ("near.csv", "far.csv"):
        rows = (folder / name).read_text().splitlines()
        (folder / f"other {name}").write_text("\n".join([rows[0], *reversed(rows[1:])]))
    command("--data", "near.csv", "far.csv", "other near.csv", "--measure", "ot", "--output", "results")
    written = table(folder / "results" / "similarity.csv")
    assert written["ot", "near.csv", "other near.csv"] < written["ot", "near.csv", "far.csv"]


def test_the_default_measures_fit_the_network(folder):
    """The values of tables are compared as they are: task2vec, which needs weights, is left out."""
    command("--data", "near.csv", "far.csv", "--output", "tables")
    assert {measure for measure, _, _ in table(folder / "tables" / "similarity.csv")} == {"mmd", "ot"}
    command("--data", "pictures", "Digits", "--samples", "12", "--output", "images")
    assert {measure for measure, _, _ in table(folder / "images" / "similarity.csv")} == {"task2vec", "mmd", "ot"}


def test_another_network_and_fewer_classes(folder, capsys, monkeypatch):
    asked = []

    def spy(tasks, measures, backbone, **options):
        asked.append((backbone, options))
        return distances(tasks, measures, backbone, **options)

    monkeypatch.setattr(similarity, "distances", spy)
    command(
        "--data", "Glyphs", "Digits", "--classes", "5", "--samples", "10", "--measure", "task2vec",
        "--backbone", "Conv4", "--backbone.hidden_channels", "4", "--draws", "3", "--seed", "7", "--output", ".",
    )  # fmt: skip
    assert "Glyphs (10 samples, 5 classes)" in capsys.readouterr().out
    ((backbone, options),) = asked
    assert isinstance(backbone, Conv4)
    assert backbone.out_features == Conv4(hidden_channels=4).out_features
    assert options == {"draws": 3, "seed": 7}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--data", "Digits", "Digits"], "twice"),
        (["--data", "Digits"], "two or more data sets"),
        (["--data", "Digits", "pictues"], "pictues"),
        (["--data", "Digits", "ImageFolder"], "needs arguments"),
        (["--data", "Digits", "Sinusoids"], "no classes"),
        (["--data", "Digits", "TypesetDigits", "--samples", "0"], "samples"),
        (["--data", "Digits", "near.csv", "--measure", "mmd"], "near.csv"),
        (["--data", "Digits", "texts.csv", "--measure", "mmd"], "texts"),
        (["--data", "near.csv", "far.csv", "--measure", "task2vec"], "needs a network with weights"),
        (["--data", "Digits", "one.csv", "--measure", "mmd"], "fewer than two classes"),
    ],
)
def test_mistakes(folder, words, expected):
    (folder / "texts.csv").write_text("text,label\n" + "the bird sings a song,a\nthe cat sleeps all day,b\n" * 4)
    (folder / "one.csv").write_text("length,width,label\n" + "1,2,same\n2,1,same\n" * 4)
    with pytest.raises(UserError) as caught:
        command(*words)
    assert expected in keep(str(caught.value))
    assert not (folder / "lightning_logs").exists()
