"""``lightning export``: the adapted predictor and the whole method, from a checkpoint."""

from __future__ import annotations

import os

import pytest
import torch
from jsonargparse import ArgumentParser
from PIL import Image

import messages
from conftest import ROOT, best_checkpoint
from metatransfer import UserError
from metatransfer.methods.exported_file import CAN_EXPORT

pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.skipif(not CAN_EXPORT, reason="needs a newer torch")
PROTONET = ROOT / "configs" / "protonet.yaml"


def export(*given):
    from metatransfer.cli.commands.export import arguments, run

    parser = ArgumentParser(exit_on_error=False)
    arguments(parser)
    run(parser.parse_args([str(word) for word in given]))


def support(folder):
    for place, name in enumerate(("cat", "dog")):
        (folder / name).mkdir(parents=True)
        for shot in range(2):
            image = Image.new("L", (28, 28), "white")
            image.paste("black", (4 + 9 * place, 4, 12 + 9 * place, 20 + shot))
            image.save(folder / name / f"{shot}.png")
    return folder


@pytest.mark.slow
def test_a_method_and_its_adapted_predictor(runs, tmp_path, capsys):
    from metatransfer.methods.onnx_export import run_onnx

    checkpoint = best_checkpoint(runs("fit", PROTONET, "--trainer.limit_train_batches=1"))
    export("--ckpt_path", checkpoint, "--output", tmp_path / "method.onnx")
    assert "support_x, support_y, query_x -> probabilities; differs" in capsys.readouterr().out
    export("--ckpt_path", checkpoint, "--support", support(tmp_path / "images"), "--output", tmp_path / "cats.onnx")
    said = capsys.readouterr().out
    assert "query_x -> probabilities" in said
    assert "tolerance 1e-05" in said
    x = torch.rand(3, 1, 28, 28)
    answers = run_onnx(tmp_path / "cats.onnx")(x)
    assert answers.shape == (3, 2)
    torch.testing.assert_close(answers.sum(1), torch.ones(3))


@pytest.mark.slow
def test_last_and_best_are_those_of_the_newest_run_here(cli, capsys, tmp_path):
    with pytest.raises(UserError) as error:
        export("--ckpt_path", "last", "--output", "model.pt2")
    messages.keep(str(error.value).replace(str(tmp_path), "<folder>"))
    newest, older = (cli("fit", PROTONET, "--trainer.limit_train_batches=1") for _ in range(2))
    os.utime(older / "checkpoints" / "last.ckpt", (0, 0))
    for word, name in (("last", "last.ckpt"), ("best", best_checkpoint(newest).name)):
        export("--ckpt_path", word, "--output", f"{word}.pt2")
        told = capsys.readouterr().out
        assert f"--ckpt_path {word} is lightning_logs/version_0/checkpoints/{name}\n" in told
        assert (tmp_path / f"{word}.pt2").exists()


@pytest.mark.parametrize("mistake", ["checkpoint", "config", "output"])
def test_mistakes_are_one_sentence(mistake, runs, tmp_path):
    checkpoint = best_checkpoint(runs("fit", PROTONET, "--trainer.limit_train_batches=1"))
    moved = tmp_path / "best.ckpt"
    moved.write_bytes(checkpoint.read_bytes())
    given = {
        "checkpoint": ["--ckpt_path", tmp_path / "none.ckpt", "--output", "model.onnx"],
        "config": ["--ckpt_path", moved, "--support", support(tmp_path / "images"), "--output", "model.onnx"],
        "output": ["--ckpt_path", moved, "--output", tmp_path / "model.bin"],
    }[mistake]
    with pytest.raises(UserError) as error:
        export(*given)
    messages.keep(str(error.value).replace(str(tmp_path), "<folder>").replace(str(tmp_path.parent), "<runs>"))
