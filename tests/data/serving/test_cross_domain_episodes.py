"""Training on one source, testing on others."""

import json

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from conftest import results
from metatransfer import MLP, CrossDomainEpisodes, ProtoNetModule, Report, UserError
from metatransfer.data import TensorSource
from serving_by_names import Given, episodic


class Gaussian(Given):
    """Gaussian classes; the noise makes a source hard."""

    def __init__(self, noise, size):
        parts = {}
        for seed, split in enumerate(("train", "val", "test")):
            generator = np.random.default_rng(seed)
            x = np.repeat(generator.normal(size=(12, size)), 20, 0) + noise * generator.normal(size=(240, size))
            names = [f"{split}{i}" for i in range(12)]
            parts[split] = TensorSource(torch.tensor(x).float(), np.repeat(np.arange(12), 20), names, "Gaussian")
        super().__init__(parts)


def blobs(noise=0.1, size=4, **options):
    options = {"num_queries": 3, "train_episodes": 32, "val_episodes": 8, "test_episodes": 20} | options
    return episodic(Gaussian(noise, size), **options)


def module():
    return ProtoNetModule(MLP(in_shape=[4], hidden=[16]))


def trainer(path, **options):
    return Trainer(
        default_root_dir=path, logger=False, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, **options,
    )  # fmt: skip


def test_every_source_has_its_results(tmp_path, capsys):
    data = CrossDomainEpisodes(blobs(), {"easy": blobs(0.05), "hard": blobs(3.0, test_episodes=30)})
    model = module()
    report = Report()
    run = trainer(tmp_path, max_epochs=1, callbacks=[report])
    run.fit(model, data)
    found = run.test(model, datamodule=data, verbose=False)[0]
    assert found["test/easy/accuracy"] > 0.9
    assert found["test/hard/accuracy"] < 0.7
    together = (20 * found["test/easy/accuracy"] + 30 * found["test/hard/accuracy"]) / 50
    assert found["test/accuracy"] == pytest.approx(together, abs=1e-6)
    assert found["test/episodes"] == 50
    # each source's numbers are those of a test on it alone
    for name in data.test_names:
        alone = trainer(tmp_path).test(model, datamodule=data.test_data[name], verbose=False)[0]
        assert alone["test/accuracy"] == pytest.approx(found[f"test/{name}/accuracy"], abs=1e-6)
        assert alone["test/accuracy_ci95"] == pytest.approx(found[f"test/{name}/accuracy_ci95"], abs=1e-6)
    numbers = report.measured["1-NN"]
    assert set(numbers) == {"accuracy", "easy/accuracy", "hard/accuracy"}
    assert numbers["easy/accuracy"]["value"] > numbers["accuracy"]["value"] > numbers["hard/accuracy"]["value"]
    written = json.loads(next(tmp_path.rglob("results-test.json")).read_text())
    assert written["metrics"]["easy/accuracy"]["value"] == pytest.approx(found["test/easy/accuracy"])
    table = capsys.readouterr().out
    assert "easy/accuracy" in table
    assert "test on hard" in table


@pytest.mark.slow
def test_through_the_command(cli, tmp_path):
    config = tmp_path / "cross.yaml"
    config.write_text(
        """
trainer: {max_epochs: 1, accelerator: cpu, enable_progress_bar: false}
model:
  class_path: MAMLModule
  init_args:
    backbone: {class_path: Conv4, init_args: {hidden_channels: 4}}
data:
  class_path: CrossDomainEpisodes
  init_args:
    train:
      class_path: EpisodicDataModule
      init_args: {source: Glyphs, task: {num_ways: 3, num_queries: 2}, episodes: {train: 16, val: 4}}
    test:
      one:
        class_path: EpisodicDataModule
        init_args: {source: Glyphs, task: {num_ways: 3, num_queries: 2}, episodes: {test: 4}}
      five-shot:
        class_path: EpisodicDataModule
        init_args: {source: Glyphs, task: {num_ways: 3, num_shots: 5, num_queries: 2}, episodes: {test: 4}}
"""
    )
    run = cli("fit", config, small=False)
    fitted = results(run)
    tested = results(cli("test", config, "--ckpt_path", tmp_path / fitted["checkpoint"], small=False))
    assert {"one/accuracy", "five-shot/accuracy", "accuracy"} <= set(tested["metrics"])
    assert tested["episodes"] == 8
    assert tested["protocol"]["data"]["test"]["five-shot"]["eval_episode"]["num_shots"] == 5


def test_sources_of_different_shapes(tmp_path):
    data = CrossDomainEpisodes(blobs(), {"wide": blobs(size=6)})
    data.setup("fit")
    with pytest.raises(UserError, match=r"those of train are \(4,\) and those of wide are \(6,\)"):
        data.setup("test")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: CrossDomainEpisodes(blobs(), {}), "has no source"),
        (lambda: CrossDomainEpisodes(blobs(), {"a.b": blobs()}), "letters, digits"),
        (lambda: CrossDomainEpisodes(blobs(), {"": blobs()}), "letters, digits"),
        (lambda: CrossDomainEpisodes(blobs(), {"easy": blobs()}).episode("test", 0, "esay"), "Did you mean easy?"),
    ],
)
def test_bad_arguments(make, words):
    with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
        make()
    assert words in str(caught.value)


def test_validation_source_may_be_another(tmp_path):
    data = CrossDomainEpisodes(blobs(), {"a": blobs()}, val=blobs(3.0, val_episodes=5))
    data.setup("fit")
    assert len(data.val_dataloader()) == 1
    assert data.episode("val", 0).query_x.std() > 2
    assert data.protocol()["val"]["episodes"]["val"] == 5
