"""The configurations for small data of one's own: one command each, on data of the size that they are for."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from contract import ROOT
from metatransfer.cli import main

OWN = ROOT / "configs" / "own"
QUIET = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
# random weights and small images: what is tested is the path from the data to the number
PLAIN = ["--model.backbone.weights=null", "--model.backbone.resize=32"]


def photographs(folder, shift=0.0):
    """Five classes of 20 pictures: a colour with noise."""
    noise = np.random.default_rng(0)
    for label, colour in enumerate([(200, 40, 40), (40, 200, 40), (40, 40, 200), (200, 200, 40), (40, 200, 200)]):
        (folder / f"product {label}").mkdir(parents=True)
        for number in range(20):
            pixels = np.array(colour) * (1 - shift) + noise.normal(0, 20, (24, 24, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"product {label}" / f"{number}.png")
    return folder


def results(folder):
    return json.loads((folder / "lightning_logs" / "version_0" / "results.json").read_text())


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METATRANSFER_CACHE", str(tmp_path / "cache"))
    return tmp_path


def fit(name, *arguments):
    main(["fit", "--config", str(OWN / f"{name}.yaml"), *QUIET, *arguments])


def test_photographs(workplace):
    pytest.importorskip("timm")
    folder = photographs(workplace / "photographs")
    fit("photos", f"--data.source.root={folder}", "--data.source.image_size=32", *PLAIN)
    found = results(workplace)
    assert found["samples"] == 25
    assert found["metrics"]["accuracy"]["value"] > 0.8
    assert set(found["baselines"]) == {"most frequent class", "pixel 1-NN"}


def test_texts(workplace):
    words = [["late", "parcel", "delivery"], ["refund", "money", "back"], ["broken", "screen", "glass"]]
    noise = np.random.default_rng(0)
    with (workplace / "tickets.csv").open("w", newline="") as file:
        rows = [(" ".join(noise.choice([*own, "the", "my", "is"], 6)), own[0]) for own in words for _ in range(20)]
        csv.writer(file).writerows([("text", "label"), *rows])
    fit("texts", "--data.source=tickets.csv")
    found = results(workplace)
    assert found["samples"] == 15
    assert found["metrics"]["accuracy"]["value"] > 0.9


@pytest.mark.slow
def test_a_table_with_gaps(workplace):
    noise = np.random.default_rng(0)
    labels = np.arange(80) % 2
    rows = [[f"{value:.2f}", noise.choice(["red", "blue"]), ("no", "yes")[label]] for label, value in
            zip(labels, labels + noise.normal(0, 0.2, 80), strict=True)]  # fmt: skip
    rows[3][0] = ""
    with (workplace / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("width", "colour", "bought"), *rows])
    fit("table", "--data.source.path=table.csv", "--data.source.label=bought")
    found = results(workplace)
    assert found["metrics"]["accuracy"]["value"] > 0.8
    assert sum(found["skipped"].values()) == 1


@pytest.mark.slow
def test_two_domains(workplace):
    pytest.importorskip("timm")
    source, target = photographs(workplace / "shop"), photographs(workplace / "phone", shift=0.3)
    sizes = ["--data.sources.source.image_size=32", "--data.targets.target.image_size=32"]
    fit("domains", f"--data.sources.source.root={source}", f"--data.targets.target.root={target}", *sizes, *PLAIN)
    assert results(workplace)["metrics"]["source_accuracy"]["value"] > 0.8
    gain = json.loads((workplace / "lightning_logs" / "version_0" / "adaptation_gain.json").read_text())
    assert gain


@pytest.mark.slow
def test_new_classes_without_training(workplace):
    pytest.importorskip("timm")
    folder = photographs(workplace / "photographs")
    given = [f"--data.source.root={folder}", f"--data.predict.support={folder}", f"--data.predict.query={folder}"]
    command = ["predict", "--config", str(OWN / "new_classes.yaml"), *QUIET[:2], *given, *PLAIN]
    main([*command, "--data.source.image_size=32"])
    with next(workplace.rglob("predictions.csv")).open() as file:
        found = list(csv.DictReader(file))
    assert len(found) == 100
    assert np.mean([row["label"] in row["file"] for row in found]) > 0.8
