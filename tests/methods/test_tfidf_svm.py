"""TF-IDF with a linear SVM: the answers of scikit-learn's own pipeline, through the real command."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch

from conftest import best_checkpoint, results
from contract import ROOT
from metatransfer import LabelledDataModule, Texts, TfidfSVMModule, UserError

WORDS = {
    "weather": ["will it rain", "is it sunny in {}", "how cold is {}", "forecast for {}", "does the sun shine in {}"],
    "travel": ["book a train to {}", "when does the bus to {} leave", "a ticket to {} please", "fly me to {}"],
    "money": ["send cash to {}", "what is my balance", "pay the bill of {}", "lend {} some money"],
}
PLACES = ["rome", "paris", "oslo", "lima", "cairo", "tokyo", "quito", "delhi"]


def write(path, classes=tuple(WORDS)):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "category"])
        for label in classes:
            for place in PLACES:
                writer.writerows([form.format(place), label] for form in WORDS[label])
    return path


@pytest.fixture
def texts(tmp_path):
    return write(tmp_path / "all.csv")


def sentences(data, split):
    return [data.show(split, number) for number in range(len(data.labels(split)))]


def pipeline(data):
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import LinearSVC

    machine = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LinearSVC(dual="auto", random_state=0)
    )
    return machine.fit(sentences(data, "train"), data.labels("train").numpy())


@pytest.mark.parametrize("classes", [tuple(WORDS), ("money", "travel")])
def test_its_margins_are_those_of_the_pipeline(tmp_path, classes):
    data = LabelledDataModule(Texts(str(write(tmp_path / "some.csv", classes)), label="category"))
    data.setup("fit")
    module = TfidfSVMModule(len(classes))
    module.fit_data(data)
    expected = pipeline(data).decision_function(sentences(data, "val"))
    found = module.scores(sentences(data, "val")).numpy()
    if len(classes) == 2:
        np.testing.assert_allclose(found[:, 1], expected, rtol=1e-10)
        np.testing.assert_allclose(found[:, 0], -expected, rtol=1e-10)
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)
    # built again of what a checkpoint keeps
    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    other = TfidfSVMModule(len(classes))
    other.on_load_checkpoint(checkpoint)
    np.testing.assert_allclose(other.scores(sentences(data, "val")).numpy(), found, rtol=1e-12)


def test_fit_test_and_predict_by_the_command(cli, texts, tmp_path):
    data = ["--data.source.path", texts, "--data.source.test=null"]
    run = cli("fit", ROOT / "configs" / "banking77" / "tfidf_svm.yaml", *data, small=False)
    assert results(run)["metrics"]["accuracy"]["value"] > 0.9
    assert results(run)["baselines"].keys() == {"most frequent class"}
    checkpoint = best_checkpoint(run)
    torch.load(checkpoint, weights_only=True)
    tested = cli("test", run / "config.yaml", "--ckpt_path", checkpoint, small=False)
    assert results(tested)["metrics"]["accuracy"]["value"] > 0.9
    assert "calibration_error" not in results(tested)["metrics"], "margins are no probabilities"
    assert {path.name for path in (tested / "figures").glob("test_*")} >= {"test_confusion.png"}
    assert not list(tested.rglob("*calibration*"))
    asked = tmp_path / "asked.txt"
    asked.write_text("is it sunny in berlin\na ticket to berlin please\npay the bill of anna\n")
    arguments = ["--ckpt_path", checkpoint, "--data.predict", asked, "--data.eval_batch_size=2"]
    predicted = cli("predict", run / "config.yaml", *arguments, small=False)
    rows = list(csv.DictReader((predicted / "predictions.csv").open()))
    assert [row["label"] for row in rows] == ["weather", "travel", "money"]
    assert [row["file"] for row in rows] == [f"asked.txt:{line}" for line in (1, 2, 3)]


def test_wrong_input(texts):
    data = LabelledDataModule(Texts(str(texts), label="category"))
    data.setup("fit")
    with pytest.raises(UserError, match="min_count=1000"):
        TfidfSVMModule(3, min_count=1000).fit_data(data)
    with pytest.raises(UserError, match="is not fitted yet"):
        TfidfSVMModule(3).scores(["a"])
    with pytest.raises(UserError, match="takes texts, not their tokens"):
        TfidfSVMModule(3)(torch.zeros(1))
    with pytest.raises(UserError, match="ngrams must be a number above 0"):
        TfidfSVMModule(3, ngrams=0)
    with pytest.raises(UserError, match="needs num_classes"):
        TfidfSVMModule()


def test_pictures_are_refused(cli, capsys):
    with pytest.raises(SystemExit):
        cli("fit", ROOT / "configs" / "frozen_features.yaml", "--model", "TfidfSVMModule", small=False)
    assert "TfidfSVMModule classifies texts, but LabelledDataModule serves none" in capsys.readouterr().err
