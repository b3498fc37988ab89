"""Every YAML under configs/, through the real command."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from PIL import Image

from conftest import best_checkpoint, in_episodes, results, tiny
from contract import CONFIGS, EVERY_CONFIG, KINDS, answers, canaries, content_of, methods, name_of, needs_files
from metatransfer import EpisodicDataModule, EpisodicModule, Glyphs, MethodModule, Task
from metatransfer.callbacks.run.checkpoint import card_path
from metatransfer.cli import main

FILES_ASKED_FOR = [path for path in EVERY_CONFIG if needs_files(path)]


def test_every_method_has_a_config():
    named = {content_of(path)["model"]["class_path"].rpartition(".")[2] for path in EVERY_CONFIG}
    assert {kind.__name__ for kind in methods(MethodModule)} <= named


# others are fitted here and in the tests of their kind, or read until their data are missed below
@pytest.mark.parametrize("name", ["maml", "omniglot/protonet", "copy/ntm"])
def test_configs_parse(name, capsys):
    config = next(path for path in EVERY_CONFIG if name_of(path) == name)
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", str(config), "--print_config"])
    assert not stop.value.code
    assert yaml.safe_load(capsys.readouterr().out)["model"]["class_path"]


@pytest.mark.grid(3)
@pytest.mark.parametrize("config", FILES_ASKED_FOR, ids=lambda path: path.parent.name + "/" + path.name)
def test_data_that_is_not_there_is_asked_for_in_one_sentence(config, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", str(config), "--trainer.accelerator=cpu"])
    assert stop.value.code == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: ")
    given = content_of(config)["data"]["init_args"]
    if "sources" in given:
        given = next(iter(given["sources"].values()))["init_args"]
    while "source" in given or "episodes" in given:  # ClassBatches wraps a data module
        given = given["source" if "source" in given else "episodes"]["init_args"]
    assert given.get("root", given.get("path")) in message
    assert "put" in message or "check the path" in message.lower()


def write_folder(root, episode):
    """A support folder ``<label>/<image>`` and a query folder of PNG files, dark ink on light paper."""
    for index, (image, label) in enumerate(zip(episode.support_x[0], episode.support_y[0].tolist(), strict=True)):
        save(image, root / "support" / f"letter-{label}" / f"{index}.png")
    for index, image in enumerate(episode.query_x[0]):
        save(image, root / "query" / f"{index:02d}.png")


def save(image, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(((1 - image[0]) * 255).byte().numpy()).resize((90, 90)).save(path)


@pytest.mark.parametrize("config", canaries(CONFIGS, "maml"))
def test_fit_validate_test_predict(cli, whole, config, tmp_path):
    run = whole(config)
    fit = results(run)
    assert fit["stage"] == "fit"
    assert {"stage", "metrics", "baselines", "protocol", "checkpoint", "seconds"} <= fit.keys()
    checkpoint = best_checkpoint(run)
    assert fit["checkpoint"] == str(checkpoint.relative_to(run.parents[1]))
    card = json.loads(card_path(checkpoint).read_text())
    assert card == fit["protocol"]
    score = card["selection"].rpartition("/")[2]
    assert card["data"]["eval_episode"]["num_queries"] == 2
    assert card["selection"] in ("max val/accuracy", "min val/mse", "min val/loss")
    assert card["seed"] == 0
    assert score != "accuracy" or (run / "figures" / "val_episode.png").exists()
    assert list(run.glob("events.out.tfevents*"))

    saved = run / "config.yaml"  # what a run saves runs again
    measured = {}
    for command in ("validate", "test"):
        measured[command] = again = results(cli(command, saved, "--ckpt_path", checkpoint, small=False))
        assert again["stage"] == command
        assert again["protocol_differences"] == []
        for number in (again["metrics"][score], again["metrics"]["loss"], *baselines(again, score)):
            assert number["ci95"] > 0, "even if all tasks score alike"
            assert 0 <= number.get("low", 0) <= number["value"] <= number.get("high", number["value"])
    validated = measured["validate"]["metrics"]
    assert validated[score] == pytest.approx(fit["metrics"][score])
    assert validated["loss"]["value"] == pytest.approx(fit["metrics"]["loss"]["value"], rel=1e-5)
    if score == "accuracy":  # made of pictures
        assert_pictures_get_labels(cli, config, saved, checkpoint, tmp_path)


def assert_pictures_get_labels(cli, config, saved, checkpoint, folder):
    data = EpisodicDataModule(Glyphs(), task=Task(num_queries=3))
    data.setup("test")
    write_folder(folder, data.episode("test", 0))
    folders = in_episodes(config, [f"--data.predict.{name}={folder / name}" for name in ("support", "query")])
    predicted = cli("predict", saved, "--ckpt_path", checkpoint, *folders, small=False)
    rows = (predicted / "predictions.csv").read_text().splitlines()
    assert rows[0] == "file,label," + ",".join(f"p(letter-{i})" for i in range(5))
    assert len(rows) == 1 + 15
    for row in rows[1:]:
        _, label, *chances = row.split(",")
        chances = [float(chance) for chance in chances]
        assert sum(chances) == pytest.approx(1, abs=1e-4)
        assert chances[int(label.removeprefix("letter-"))] == max(chances)  # rounded numbers may be equal


def baselines(measured, score):
    nearest = "pixel 1-NN" if score == "accuracy" else "1-NN"
    assert set(measured["baselines"]) == {nearest, "untrained"}
    # they are scored by their accuracy or error, also where the method is selected by its loss
    return [numbers["accuracy" if "accuracy" in numbers else "mse"] for numbers in measured["baselines"].values()]


@pytest.mark.parametrize("config", canaries(CONFIGS, "maml", "protonet", "pretrain", "snail"))
def test_loaded_from_its_checkpoint_it_answers_as_at_the_end_of_its_training(whole, config):
    run = whole(config)
    path = run / "checkpoints" / "last.ckpt"
    kind = next(k for k in methods(EpisodicModule) if k.__name__ == results(run)["protocol"]["method"]["name"])
    module = kind.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    assert torch.equal(answers(module), torch.load(run / "answers.pt", weights_only=True))


@pytest.mark.parametrize(
    ("precision", "config"),
    [
        pytest.param(precision, *one.values, id=f"{precision}-{one.id}", marks=one.marks)
        for precision, chosen in (("bf16-mixed", CONFIGS), ("64-true", KINDS))
        for one in canaries(chosen, *["protonet"] * (precision == "bf16-mixed"))
    ],
)
def test_other_precisions_run(cli, precision, config):
    run = cli("fit", config, *tiny(config), "--trainer.precision", precision, "--trainer.limit_train_batches=2")
    assert results(run)["metrics"]["loss"]["value"] > 0
    assert results(run)["protocol"]["precision"] == precision
