"""What a model takes over from its data, through the real command."""

import numpy as np
import pytest
import yaml
from PIL import Image

from conftest import ROOT, results

PROTONET, MAML = ROOT / "configs" / "protonet.yaml", ROOT / "configs" / "maml.yaml"


@pytest.fixture
def photographs(tmp_path, monkeypatch):
    """Nothing but folders of classes."""
    monkeypatch.setenv("METATRANSFER_CACHE", str(tmp_path / "cache"))
    generator = np.random.default_rng(0)
    for kind in range(16):
        folder = tmp_path / "photographs" / f"kind {kind}"
        folder.mkdir(parents=True)
        for number in range(4):
            pixels = generator.integers(0, 256, (24, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.jpg")
    return tmp_path / "photographs"


def backbone(run):
    return yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]["backbone"]["init_args"]


FOLDER = ("--data.task.num_ways=5", "--data.source.image_size=20")


@pytest.mark.slow
def test_a_folder_of_photographs_is_enough(cli, photographs, capsys):
    data = ("--data", "EpisodicDataModule", "--data.source", "ImageFolder", "--data.source.root", photographs, *FOLDER)
    run = cli("fit", MAML, *data)
    assert (backbone(run)["in_channels"], backbone(run)["image_size"]) == (3, 20)
    assert results(run)["skipped"] == {"all": 0}
    assert "left out" not in capsys.readouterr().out
    # the saved configuration and its checkpoint go together
    cli("test", run / "config.yaml", "--ckpt_path", next((run / "checkpoints").glob("epoch*")), small=False)


def test_what_is_left_out_is_counted_in_the_report(cli, photographs, capsys):
    (photographs / "kind 3" / "0.jpg").write_bytes(b"no image")
    (photographs / "kind 4" / "0.jpg").write_bytes(b"no image")
    data = (
        "--data",
        "EpisodicDataModule",
        "--data.source",
        "ImageFolder",
        "--data.source.root",
        photographs,
        "--data.source.on_bad_sample",
        "skip",
        *FOLDER,
    )
    run = cli("fit", PROTONET, *data, "--data.task.num_queries=1", "--data.eval_task.num_queries=1")
    skipped = results(run)["skipped"]
    assert 0 < sum(skipped.values()) <= 2
    assert f"{skipped['all']} samples, which could not be read" in capsys.readouterr().out


def test_what_is_given_stays(cli, photographs, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli(
            "fit", MAML, "--data", "EpisodicDataModule", "--data.source", "ImageFolder",
            "--data.source.root", photographs, *FOLDER, "--model.backbone.image_size=28",
        )  # fmt: skip
    assert stopped.value.code == 2
    assert "(3, 28, 28)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("config", "arguments", "expected"),
    [
        (PROTONET, (), {"in_channels": 1, "image_size": 28}),
        pytest.param(
            PROTONET, ("--model.backbone", "ResNet12", "--model.backbone.widths=[4,4,4,4]"), {"in_channels": 1},
            marks=pytest.mark.slow,
        ),
        pytest.param(PROTONET, ("--model.backbone", "MLP"), {"in_shape": [1, 28, 28]}, marks=pytest.mark.slow),
        (ROOT / "configs/sinusoid/maml.yaml", (), {"in_shape": [1]}),
    ],
)  # fmt: skip
def test_every_backbone_follows(cli, config, arguments, expected):
    found = backbone(cli("fit", config, *arguments, "--data.episodes.per_batch=2"))
    assert {name: found[name] for name in expected} == expected
