"""Supervised pretraining, and what comes after it."""

import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import nn

from conftest import ROOT, best_checkpoint, results
from contract import episode, training_batch
from metatransfer import (
    Arrays,
    ClassBatches,
    Conv4,
    CosineHead,
    Episodes,
    EpisodicDataModule,
    LabelledBatch,
    PretrainModule,
    Task,
    UserError,
)
from metatransfer.data.readers.glyph_file import load_glyphs

PRETRAIN, MAML, PROTONET = (ROOT / "configs" / f"{name}.yaml" for name in ("pretrain", "maml", "protonet"))
TINY = "--model.backbone.hidden_channels=4"


def module(**arguments):
    return PretrainModule(Conv4(hidden_channels=4), num_classes=3, **arguments)


def test_training_is_cross_entropy_over_all_classes():
    made, batch = module().train(), training_batch(PretrainModule)
    expected = F.cross_entropy(made.head(made.backbone(batch.x)), batch.y)
    loss, outputs = made.training_loss(batch)
    torch.testing.assert_close(loss, expected)
    assert outputs.shape == (len(batch.y), 3)
    torch.testing.assert_close(made.training_step(tuple(batch), 0), expected)  # a plain loader's pair too


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_evaluation_is_by_the_nearest_class_mean(distance):
    made, batch = module(distance=distance, scale=7.0).double().eval(), episode()
    batch = batch.map(lambda t: t.double() if t.is_floating_point() else t)
    with torch.no_grad():
        outputs = made(batch)
        for task in range(2):
            support, queries = (made.backbone(x[task]) for x in (batch.support_x, batch.query_x))
            means = torch.stack([support[batch.support_y[task] == label].mean(0) for label in range(3)])
            for query, scores in zip(queries, outputs[task], strict=True):
                found = 7 * F.cosine_similarity(means, query[None]) if distance == "cosine" else None
                expected = -(means - query).square().sum(1) if found is None else found
                torch.testing.assert_close(scores, expected)


def test_the_head_plays_no_part_in_evaluation():
    made, batch = module(head=CosineHead).eval(), episode()
    with torch.no_grad():
        before = made(batch)
        made.head.weight.fill_(torch.nan)
        assert torch.equal(made(batch), before)
    assert isinstance(made.head, CosineHead)
    assert made.protocol()["train_head"] == "CosineHead"


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: PretrainModule(Conv4()), "needs num_classes, .* ClassBatches"),
        (lambda: PretrainModule(Conv4(), num_classes=0), "num_classes must be a number above 0"),
        (lambda: module(scale=0.0), "scale must be a number above 0"),
        (lambda: module(distance="cosin"), "Did you mean cosine"),
    ],
)
def test_refusals_at_construction(build, words):
    with pytest.raises(UserError, match=words):
        build()


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (LabelledBatch(torch.rand(4, 1, 28, 28), torch.tensor([0, 1, 2, 3])), "labels from 0 to 3, .* num_classes=3"),
        (LabelledBatch(torch.rand(4, 1, 28, 28), torch.tensor([0, 1, 2])), r"\(4, 1, 28, 28\) and \(3,\)"),
        (LabelledBatch(torch.rand(2, 1, 28, 28), torch.rand(2)), "int64 labels, but has torch.float32"),
        (LabelledBatch(torch.zeros(2, 1, 28, 28, dtype=torch.uint8), torch.tensor([0, 1])), "must be floating point"),
        (LabelledBatch(torch.rand(2, 3, 28, 28), torch.tensor([0, 1])), r"the data has \(3, 28, 28\)"),
    ],
)
def test_refusals_of_batches(batch, words):
    with pytest.raises(UserError, match=words):
        module().training_step(batch, 0)


@pytest.mark.slow
def test_it_learns_glyphs():
    glyphs = load_glyphs()
    images = glyphs.images[::16]  # of every writing system
    scripts = {script: split for split, members in glyphs.splits.items() for script in members}
    split = [scripts[script] for script in glyphs.scripts[::16] for _ in range(20)]
    x, y = images.reshape(-1, 1, 28, 28), torch.arange(len(images)).repeat_interleave(20)
    inside = EpisodicDataModule(
        Arrays.from_arrays(x, y, split=split), task=Task(num_queries=5), episodes=Episodes(val=100)
    )
    data = ClassBatches(inside, batch_size=64)
    data.setup("fit")
    made = PretrainModule(Conv4(hidden_channels=16), num_classes=data.info().num_classes)
    optimizer = torch.optim.Adam(made.parameters(), lr=0.01)

    def accuracy():
        made.eval()
        with torch.no_grad():
            parts = [(made(batch).argmax(-1) == batch.query_y).float().mean() for batch in data.val_dataloader()]
        return torch.stack(parts).mean().item()

    before = accuracy()
    made.train()
    for _ in range(8):
        for batch in data.train_dataloader():
            optimizer.zero_grad()
            made.training_loss(batch)[0].backward()
            optimizer.step()
    assert accuracy() > before + 0.2


# ---- through the command


def saved(run):
    return yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]


def mistake(cli, capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        cli(*arguments)
    assert stopped.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "classes"),
    [
        ([], 1552),
        pytest.param(["--model.num_classes=2000"], 2000, marks=pytest.mark.slow),
        pytest.param(["--data.episodes.processing.rotations=classes"], 4 * 1552, marks=pytest.mark.slow),
    ],
    ids=["data", "given", "rotations"],
)
def test_the_number_of_classes_follows_the_data(runs, arguments, classes):
    assert saved(runs("fit", PRETRAIN, TINY, *arguments))["num_classes"] == classes


def test_the_wrong_data_is_answered_in_one_sentence(cli, capsys, tmp_path):
    config = tmp_path / "config.yaml"
    for method, data, words in (
        (MAML, yaml.safe_load(PRETRAIN.read_text())["data"], "it follows data that serves episodes"),
        (PRETRAIN, {"class_path": "EpisodicDataModule", "init_args": {"source": "Glyphs"}}, "needs num_classes"),
    ):
        config.write_text(yaml.safe_dump(yaml.safe_load(method.read_text()) | {"data": data}))
        assert words in mistake(cli, capsys, "fit", config, TINY)


@pytest.mark.slow
def test_pretrain_then_meta_train_then_test(cli, runs, tmp_path, capsys, caplog):
    """And the files of weights may go once a run has its own checkpoint."""
    moved = Path(shutil.copy(best_checkpoint(runs("fit", PRETRAIN, TINY)), tmp_path / "pretrained.ckpt"))
    caplog.clear()
    run = cli("fit", MAML, TINY, f"--model.backbone.weights={moved}", "--trainer.max_epochs=2")
    assert caplog.text.count("backbone: weights of 'pretrained.ckpt'") == 1
    card = results(run)["protocol"]["initial_weights"]["backbone"]
    assert (card["file"], card["kept"], card["dropped"], card["new"]) == ("pretrained.ckpt", 28, 0, 0)
    moved.unlink()

    path, config = best_checkpoint(run), run / "config.yaml"
    tested = results(cli("test", config, "--ckpt_path", path, small=False))
    assert tested["protocol_differences"] == []
    assert tested["protocol"]["initial_weights"] == results(run)["protocol"]["initial_weights"]
    assert set(tested["baselines"]) == {"pixel 1-NN", "untrained"}
    last = run / "checkpoints" / "last.ckpt"
    resumed = cli("fit", config, "--ckpt_path", last, "--trainer.max_epochs=3", small=False)
    assert results(resumed)["protocol"]["initial_weights"]["backbone"] == card
    assert "does not exist" in mistake(cli, capsys, "fit", config)


def test_the_network_starts_from_the_weights(cli, runs):
    path = best_checkpoint(runs("fit", PRETRAIN, TINY))
    run = cli("test", PROTONET, TINY, f"--model.backbone.weights={path}")
    other = cli("test", PRETRAIN, TINY, "--model.distance=euclidean", f"--model.backbone.weights={path}",
                "--data.episodes.eval_task.num_ways=5")  # fmt: skip
    assert results(run)["metrics"]["accuracy"] == results(other)["metrics"]["accuracy"]
    backbone = Conv4(hidden_channels=4, weights=str(path))
    given = torch.load(path, weights_only=True)["state_dict"]
    assert all(torch.equal(value, given[f"backbone.{name}"]) for name, value in backbone.state_dict().items())
    assert isinstance(backbone.layers[0], nn.Conv2d)


def test_tested_on_the_bare_episodes_there_is_no_difference(cli, runs, tmp_path):
    run = runs("fit", PRETRAIN, TINY)
    bare = yaml.safe_load((run / "config.yaml").read_text())
    bare["data"] = bare["data"]["init_args"]["episodes"]
    (tmp_path / "bare.yaml").write_text(yaml.safe_dump(bare))
    path = best_checkpoint(run)
    both = [
        results(cli("test", one, "--ckpt_path", path, small=False))
        for one in (tmp_path / "bare.yaml", run / "config.yaml")
    ]
    assert both[0]["metrics"] == both[1]["metrics"]
    assert both[0]["protocol_differences"] == both[1]["protocol_differences"] == []
