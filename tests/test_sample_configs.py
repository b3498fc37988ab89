"""Every YAML whose data are labelled samples, through the real command."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import best_checkpoint, results
from contract import ROOT, SAMPLE_CONFIGS, answers, canaries, methods
from metatransfer.callbacks.run.checkpoint import card_path
from metatransfer.methods.classifier import ClassifierModule

canary = pytest.mark.parametrize("config", canaries(SAMPLE_CONFIGS, "finetune"))
GAIN = json.dumps([{"class_path": "TransferGain", "init_args": {"seeds": 2}}])
BRIEF = ["--trainer.max_epochs=2", "--trainer.check_val_every_n_epoch=1"]
SHORT = [*BRIEF, '--trainer.callbacks=[{"class_path": "contract.KeepAnswers"}]']


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("METATRANSFER_CACHE", str(tmp_path / "cache"))


def test_there_are_some():
    assert {path.name for path in SAMPLE_CONFIGS} >= {"finetune.yaml", "frozen_features.yaml"}


@pytest.fixture
def fitted(runs):
    """The run of a configuration that all tests of this file look at."""
    return lambda config: runs("fit", config, *SHORT, small=False)


@canary
def test_fit_validate_test(cli, fitted, config):
    run = fitted(config)
    fit = results(run)
    checkpoint = best_checkpoint(run)
    assert fit["checkpoint"] == str(checkpoint.relative_to(run.parents[1]))
    assert json.loads(card_path(checkpoint).read_text()) == fit["protocol"]
    assert fit["protocol"]["data"]["classes"] == 10
    assert fit["protocol"]["initial_weights"]["backbone"]["file"] == "conv4_glyphs.safetensors"
    assert {"most frequent class", "pixel 1-NN"} == set(fit["baselines"])
    figures = {path.name for path in (run / "figures").glob("*.png")}
    assert {"val_confusion.png", "val_calibration.png", "val_mistakes.png"} <= figures
    saved = run / "config.yaml"
    for command, split in (("validate", "val"), ("test", "test")):
        again = cli(command, saved, "--ckpt_path", checkpoint, small=False)
        measured = results(again)
        assert measured["protocol_differences"] == []
        assert measured["samples"] == fit["protocol"]["data"]["samples"][split]
        least = measured["baselines"]["most frequent class"]["accuracy"]["value"]
        assert least < measured["metrics"]["accuracy"]["value"] <= 1
        assert measured["metrics"]["accuracy"]["ci95"] > 0
        rows = list(csv.DictReader((again / f"{split}_classes.csv").open()))
        assert sum(int(row["samples"]) for row in rows) == measured["samples"]
        if command == "validate":
            assert measured["metrics"]["accuracy"] == pytest.approx(fit["metrics"]["accuracy"])


@pytest.mark.slow
@canary
def test_the_same_seed_gives_the_same_run(cli, fitted, config):
    one, two = (
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for run in (fitted(config), cli("fit", config, *BRIEF, "--trainer.callbacks=null", small=False))
    )
    assert all(torch.equal(value, two[name]) for name, value in one.items())


@pytest.mark.slow
@canary
@pytest.mark.parametrize("precision", ["bf16-mixed", pytest.param("64-true", marks=pytest.mark.slow)])
def test_other_precisions_run(cli, config, precision):
    run = cli("fit", config, *SHORT, "--trainer.precision", precision, small=False)
    assert results(run)["metrics"]["accuracy"]["value"] > 0.11


def method_of(run, base):
    return next(k for k in methods(base) if k.__name__ == results(run)["protocol"]["method"]["name"])


@canary
def test_loaded_from_its_checkpoint_it_answers_as_at_the_end_of_its_training(fitted, config):
    run = fitted(config)
    path = run / "checkpoints" / "last.ckpt"
    module = method_of(run, ClassifierModule).load_from_checkpoint(path, map_location="cpu")
    assert torch.equal(answers(module), torch.load(run / "answers.pt", weights_only=True))


@pytest.mark.slow
@canary
def test_pictures_are_labelled(cli, config, tmp_path):
    from sklearn.datasets import load_digits

    digits = load_digits()
    root = tmp_path / "photos"
    for index in range(120):
        folder = root / f"digit-{digits.target[index] % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = (digits.images[index] / 16 * 255).astype(np.uint8)
        Image.fromarray(pixels).resize((28, 28)).save(folder / f"{index}.png")
    data = [
        "--data",
        "LabelledDataModule",
        "--data.source",
        "ImageFolder",
        "--data.source.root",
        root,
        "--data.source.image_size=28",
        "--data.source.channels=1",
    ]
    run = cli("fit", config, *SHORT, *data, "--data.labels_per_class=5", small=False)
    one = method_of(run, ClassifierModule).load_from_checkpoint(best_checkpoint(run), map_location="cpu")
    assert one.class_names == ("digit-0", "digit-1", "digit-2")
    query = tmp_path / "query"
    shutil.copytree(root / "digit-1", query)
    arguments = ["--ckpt_path", best_checkpoint(run), "--data.predict", query]
    predicted = cli("predict", run / "config.yaml", *arguments, small=False)
    rows = list(csv.DictReader((predicted / "predictions.csv").open()))
    assert len(rows) == len(list(query.iterdir()))
    for row in rows:
        chances = {name: float(row[f"p({name})"]) for name in one.class_names}
        assert sum(chances.values()) == pytest.approx(1, abs=1e-4)
        assert row["label"] == max(chances, key=chances.get)


@pytest.mark.slow  # its canary: test_transfer_gain.py::test_a_fit_writes_the_gain_as_json_and_picture
def test_the_gain_is_measured(cli, capsys):
    run = cli("fit", ROOT / "configs" / "finetune.yaml", *BRIEF, f"--trainer.callbacks={GAIN}", small=False)
    found = json.loads((run / "transfer_gain.json").read_text())
    assert found["seeds"] == 2
    transfer, scratch = (found["accuracy"][name]["values"] for name in ("transfer", "from scratch"))
    assert found["gain"]["values"] == pytest.approx([one - two for one, two in zip(transfer, scratch, strict=True)])
    assert found["verdict"] in capsys.readouterr().out.replace("\n", " ")
    assert (run / "figures" / "transfer_gain.png").exists()


WRONG = [
    (["--data", "EpisodicDataModule", "--data.source", "Glyphs"], "FineTuneModule needs num_classes"),
    (["--model.backbone.hidden_channels=8"], "is for another architecture"),
    (["--model.backbone.weights", "nowhere.ckpt"], "nowhere.ckpt"),
    (["--model.policy", "HeadOnyl"], "HeadOnly"),
    (["--model.policy", "LastLayers", "--model.policy.count=7"], "count=7, but the backbone has only 4 layers"),
    (["--model.num_classes=7"], "was built for 7 classes, but the data has 10"),
    (["--data.labels_per_class=1000"], "labels_per_class=1000 is more than the"),
    (["--data.division.val_fraction=0.9"], "val_fraction + test_fraction must be below 1"),
    (["--trainer.callbacks.seeds=0"], "seeds must be a number above 0"),
]


@pytest.mark.parametrize(("arguments", "sentence"), WRONG, ids=[" ".join(one) for one, _ in WRONG])
def test_wrong_input_is_one_sentence(cli, capsys, arguments, sentence):
    with pytest.raises(SystemExit) as stop:
        cli("fit", ROOT / "configs" / "finetune.yaml", *arguments, small=False)
    assert stop.value.code == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: ")
    assert sentence in message
    assert len(message) < 500
