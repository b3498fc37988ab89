"""Every YAML whose data are sources and targets, through the real command."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import best_checkpoint, results
from contract import DOMAIN_CONFIGS, ROOT, answers, canaries, methods
from metatransfer.callbacks.run.checkpoint import card_path
from metatransfer.methods.domain import DomainAdaptationModule


def canary(*names):
    return pytest.mark.parametrize("config", canaries(DOMAIN_CONFIGS, *names))


DEFAULT = ROOT / "configs" / "dann.yaml"
SHORT = ["--trainer.max_epochs=2", "--trainer.limit_train_batches=3", "--trainer.check_val_every_n_epoch=1"]


def gain(seeds, *others):
    callbacks = [{"class_path": "AdaptationGain", "init_args": {"seeds": seeds}}, *others]
    return "--trainer.callbacks=" + json.dumps(callbacks)


ALONE = [*SHORT, gain(0)]
KEEP = [*SHORT, gain(0, {"class_path": "contract.KeepAnswers"})]


@pytest.fixture
def fitted(runs):
    """The run of a configuration that all tests of this file look at."""
    return lambda config: runs("fit", config, *KEEP, small=False)


def states(run, name="last.ckpt"):
    return torch.load(run / "checkpoints" / name, weights_only=True)


def test_there_are_some():
    names = {"adabn", "adda", "cdan", "dan", "dann", "deep_coral", "mcd", "source_only", "importance_weighted"}
    assert {path.stem for path in DOMAIN_CONFIGS} >= names | {"adapted_features"}


@canary("dann")
def test_fit_validate_test(cli, fitted, config):
    run = fitted(config)
    fit, checkpoint = results(run), best_checkpoint(run)
    assert fit["checkpoint"] == str(checkpoint.relative_to(run.parents[1]))
    assert json.loads(card_path(checkpoint).read_text()) == fit["protocol"]
    assert fit["protocol"]["selection"] == "max val/selection"
    seen = [one["metrics"]["selection"]["value"] for one in fit["history"]]
    assert fit["metrics"]["selection"]["value"] == max(seen)
    assert fit["oracle"]["validations"] == len(seen)
    assert not any(name.startswith("oracle") for name in fit["metrics"])
    assert {"selection", "source_accuracy", "information_maximization", "entropy"} <= set(fit["metrics"])
    saved = run / "config.yaml"
    validated = results(cli("validate", saved, "--ckpt_path", checkpoint, small=False))
    assert validated["protocol_differences"] == []
    assert validated["metrics"]["selection"] == pytest.approx(fit["metrics"]["selection"], rel=1e-4)
    tested = cli("test", saved, "--ckpt_path", checkpoint, small=False)
    numbers = results(tested)
    assert 0 < numbers["metrics"]["accuracy"]["value"] <= 1
    assert numbers["metrics"]["accuracy"]["ci95"] > 0
    assert {"most frequent class", "source pixel 1-NN"} == set(numbers["baselines"])
    rows = list(csv.DictReader((tested / "test_classes.csv").open()))
    assert sum(int(row["samples"]) for row in rows) == numbers["samples"]


INTERRUPTED = ("dann", "mcd", "adda", "adabn")  # seen below to give the same run twice


@pytest.mark.slow
@pytest.mark.parametrize(
    "config", [path for path in DOMAIN_CONFIGS if path.stem not in INTERRUPTED], ids=lambda path: path.stem
)
def test_the_same_seed_gives_the_same_run(cli, fitted, config):
    one, two = (states(run)["state_dict"] for run in (fitted(config), cli("fit", config, *ALONE, small=False)))
    assert all(torch.equal(value, two[name]) for name, value in one.items())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "config"),
    [
        *(pytest.param("bf16-mixed", path, id=f"bf16-mixed-{path.stem}") for path in DOMAIN_CONFIGS),
        pytest.param("64-true", DEFAULT, id="64-true-dann"),
    ],
)
def test_other_precisions_run(cli, precision, config):
    run = cli("fit", config, *ALONE, "--trainer.precision", precision, small=False)
    assert np.isfinite(results(run)["metrics"]["source_accuracy"]["value"])


@canary("dann")
def test_loaded_from_its_checkpoint_it_answers_as_at_the_end_of_its_training(fitted, config):
    run = fitted(config)
    kind = next(k for k in methods(DomainAdaptationModule) if k.__name__ == results(run)["protocol"]["method"]["name"])
    module = kind.load_from_checkpoint(run / "checkpoints" / "last.ckpt", map_location="cpu")
    assert torch.equal(answers(module), torch.load(run / "answers.pt", weights_only=True))
    assert module.class_names == tuple("0123456789")


def test_pictures_are_labelled(cli, fitted, tmp_path):
    run = fitted(DEFAULT)
    query = tmp_path / "query"
    query.mkdir()
    for number in range(3):
        Image.fromarray(np.full((28, 28), 40 * number, np.uint8)).save(query / f"{number}.png")
    targets = json.dumps(
        {
            "photos": {
                "class_path": "LabelledDataModule",
                "init_args": {
                    "source": {
                        "class_path": "ImageFolder",
                        "init_args": {"root": str(query), "image_size": 28, "channels": 1},
                    },
                    "predict": str(query),
                },
            }
        }
    )
    found = cli(
        "predict", run / "config.yaml", "--ckpt_path", best_checkpoint(run), f"--data.targets={targets}", small=False
    )
    rows = list(csv.DictReader((found / "predictions.csv").open()))
    assert len(rows) == 3
    assert {row["label"] for row in rows} <= set("0123456789")


@pytest.mark.slow  # its canary: test_training.py::test_interrupted_in_a_batch_it_goes_on_bit_equal[maml]
@pytest.mark.parametrize("config", canaries([path for path in DOMAIN_CONFIGS if path.stem in INTERRUPTED], "dann"))
def test_an_interrupted_run_goes_on_bit_equal(cli, fitted, config):
    whole = states(fitted(config))
    first = cli("fit", config, *ALONE, "--checkpoint.every_n_train_steps=1", "--checkpoint.save_top_k=-1", small=False)
    middle = sorted((first / "checkpoints").glob("epoch=0*.ckpt"))[0]
    resumed = states(cli("fit", config, *ALONE, "--ckpt_path", middle, small=False))
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][name]), name


def plain(value):
    """A checkpoint's content, tensors as bytes, without the seconds that it took and the folder that it lies in."""
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(value.shape), value.reshape(-1).view(torch.uint8).numpy().tobytes()
    if isinstance(value, dict):
        left_out = {"seconds", "dirpath", "best_model_path", "last_model_path", "kth_best_model_path", "best_k_models"}
        return {key: plain(item) for key, item in value.items() if key not in left_out}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return repr(value)  # not a number is equal to itself here


@pytest.mark.slow  # its canary: test_domain_diagnostics.py::test_no_bit_of_a_checkpoint_depends_on_labels_of_the_target
@canary("dann")
def test_labels_of_the_target_reach_nothing(cli, config, tmp_path):
    """Target labels replaced by noise in the file change no loss, no selection and no bit of a checkpoint."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = np.kron(digits.images, np.ones((3, 3)))[:300]
    x = np.pad(x, ((0, 0), (2, 2), (2, 2)))[:, None].astype(np.float32) / 16
    found = []
    for labels in (digits.target[:300], np.random.default_rng(0).integers(0, 10, 300)):
        path = tmp_path / "digits.npz"
        np.savez(path, x=x, y=labels)
        target = {
            "class_path": "LabelledDataModule",
            "init_args": {
                "source": {"class_path": "Arrays", "init_args": {"path": str(path)}},
                "division": {"test_fraction": 0.4},
            },
        }
        run = cli("fit", config, *ALONE, f"--data.targets={json.dumps({'hand': target})}", small=False)
        checkpoints = sorted((run / "checkpoints").glob("*.ckpt"))
        fitted = results(run)
        found.append(
            {
                "checkpoints": {one.name: plain(states(run, one.name)) for one in checkpoints},
                "metrics": fitted["metrics"],
                "history": fitted["history"],
                "best": fitted["checkpoint"].rpartition("/")[2],
                "oracle_labels": labels,
            }
        )
    one, two = found
    told = [one.pop("oracle_labels"), two.pop("oracle_labels")]
    assert (told[0] != told[1]).any(), "the noise changed nothing at all"
    assert one == two


@pytest.mark.slow  # its canary: test_adaptation_gain.py::test_the_command_adds_it_and_prints_one_report
def test_the_gain_is_measured(cli, capsys):
    run = cli("fit", DEFAULT, *SHORT, gain(2), small=False)
    found = json.loads((run / "adaptation_gain.json").read_text())
    assert found["seeds"] == 2
    assert found["verdict"] in capsys.readouterr().out.replace("\n", " ")
    assert (run / "figures" / "adaptation_gain.png").exists()
    assert (run / "domain_diagnostics.json").exists()


WRONG = [
    (["--data", "EpisodicDataModule", "--data.source", "Glyphs"], "DANNModule needs num_classes"),
    (["--data", "LabelledDataModule", "--data.source", "Digits"], "adapts to a target domain"),
    (["--model.ramp.max_lambda=-1"], "max_lambda must be"),
    (["--model.adaptation.normalization=layer"], "normalization"),
    (["--model.num_classes=7"], "was built for 7 classes, but the data has 10"),
    (["--checkpoint.monitor=oracle/accuracy"], "data.oracle=select"),
    (["--data.batch_size=0"], "batch_size must be a whole number from 1"),
    (["--trainer.max_epochs=-1"], "needs an end"),
]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    # the others are tested where they are raised, or on another configuration
    [
        pytest.param(*one, marks=pytest.mark.slow if 2 <= at <= 3 or at >= 6 else (), id=" ".join(one[0]))
        for at, one in enumerate(WRONG)
    ],
)
def test_wrong_input_is_one_sentence(cli, capsys, arguments, sentence):
    with pytest.raises(SystemExit) as stop:
        cli("fit", DEFAULT, *arguments, small=False)
    assert stop.value.code == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: ")
    assert sentence in message
    assert len(message) < 500


@pytest.mark.slow  # its canary: test_fit_validate_test[dann], which selects by another metric
def test_selection_by_the_oracle_is_possible_by_name(cli):
    run = cli("fit", DEFAULT, *ALONE, "--checkpoint.monitor=oracle/accuracy", "--data.oracle=select", small=False)
    assert results(run)["protocol"]["data"]["oracle"] == "select"
    assert results(run)["protocol"]["selection"] == "max oracle/accuracy"
