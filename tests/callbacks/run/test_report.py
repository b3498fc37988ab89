"""The report: its numbers, its table, its pictures."""

from __future__ import annotations

import json
import math

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from conftest import ROOT, best_checkpoint, results
from metatransfer import (
    MLP,
    BestCheckpoint,
    CNPModule,
    Conv4,
    Episode,
    EpisodeMean,
    Episodes,
    EpisodicDataModule,
    Glyphs,
    MAMLModule,
    ProtoNetModule,
    RawFeatures,
    Report,
    Sinusoids,
    Task,
)
from metatransfer.callbacks.run.display import print_report
from metatransfer.drawing import episodes as drawing
from metatransfer.functional import nearest_neighbor
from metatransfer.functional.intervals import estimate, student
from metatransfer.functional.losses import episode_scores
from metatransfer.methods.evaluation import OnEpisodes
from metatransfer.methods.evaluation.on_episodes import regression_figure
from metatransfer.methods.options import InnerLoop

PROTONET = ROOT / "configs" / "protonet.yaml"


def test_numbers_are_those_of_the_fixed_test_episodes(cli, runs):
    """Accuracy, interval and pixel baseline, computed again by hand on the same episodes."""
    run = runs("fit", PROTONET)
    tested = results(cli("test", run / "config.yaml", "--ckpt_path", best_checkpoint(run), small=False))
    data = EpisodicDataModule(Glyphs(), task=Task(num_queries=2))
    data.setup("test")
    module = ProtoNetModule.load_from_checkpoint(best_checkpoint(run)).eval()
    ours, pixels = [], []
    for index in range(6):
        batch = data.episode("test", index)
        with torch.no_grad():
            ours.append(episode_scores(module(batch), batch.query_y).item())
        pixels.append(episode_scores(nearest_neighbor(*batch[:3]), batch.query_y).item())
    for values, number in (
        (ours, tested["metrics"]["accuracy"]),
        (pixels, tested["baselines"]["pixel 1-NN"]["accuracy"]),
    ):
        assert number["value"] == pytest.approx(np.mean(values), abs=1e-6)
        expected = estimate(6, sum(values), sum(value**2 for value in values), 6 * 10)
        assert [number[part] for part in ("ci95", "low", "high")] == pytest.approx(expected[1:], abs=1e-5)
    assert tested["baselines"] != results(run)["baselines"], "those of the validation"


def test_fit_reports_the_best_epoch_and_draws_the_curve(runs):
    run = runs("fit", PROTONET, "--trainer.max_epochs=3", "--model.optimizer.lr=0.01")
    callbacks = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]
    report = next(state for name, state in callbacks.items() if name.startswith("Report"))
    accuracies = [entry["metrics"]["accuracy"]["value"] for entry in report["history"]]
    assert len(accuracies) == 3
    answer = results(run)
    assert answer["metrics"]["accuracy"]["value"] == max(accuracies)
    assert f"epoch={accuracies.index(max(accuracies))}-" in answer["checkpoint"]
    for name in ("learning_curve", "val_episode"):
        pixels = np.asarray(Image.open(run / "figures" / f"{name}.png"))
        assert pixels.std() > 10, "an empty picture"


def test_a_resumed_fit_keeps_the_best_of_the_run_it_resumes(cli, runs, tmp_path):
    """The report's numbers are those of the checkpoint that it names."""
    first = runs("fit", PROTONET, "--trainer.max_epochs=3", "--model.optimizer.lr=0.01")
    best, last = best_checkpoint(first), first / "checkpoints" / "last.ckpt"
    # an overlay that makes the rest of the training a disaster
    resumed = cli("fit", PROTONET, "--trainer.max_epochs=4", "--ckpt_path", last, "--trainer.gradient_clip_val=1e-12")
    answer = results(resumed)
    named = tmp_path / answer["checkpoint"]
    again = results(cli("validate", PROTONET, "--ckpt_path", named))
    assert again["metrics"]["accuracy"] == answer["metrics"]["accuracy"]
    assert len(answer["history"]) == 4
    assert named.exists()
    assert best.exists()


@pytest.mark.slow
def test_a_resume_under_another_evaluation_starts_a_new_history(cli):
    first = cli("fit", PROTONET)
    last = first / "checkpoints" / "last.ckpt"
    resumed = cli("fit", PROTONET, "--trainer.max_epochs=2", "--ckpt_path", last, "--data.eval_task.num_ways=15")
    answer = results(resumed)
    assert len(answer["history"]) == 1
    assert answer["baselines"] != results(first)["baselines"]
    assert str(resumed.name) in answer["checkpoint"]


def test_a_trainer_that_is_used_again_keeps_both_results(tmp_path):
    module = ProtoNetModule(Conv4(hidden_channels=4))
    data = EpisodicDataModule(
        Glyphs(), task=Task(num_queries=2), episodes=Episodes(per_batch=2, train=4, val=4, test=4)
    )
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, default_root_dir=tmp_path, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[BestCheckpoint(), Report()],
    )  # fmt: skip
    trainer.fit(module, data)
    trainer.test(module, data, verbose=False)
    folder = tmp_path / "lightning_logs" / "version_0"
    assert json.loads((folder / "results.json").read_text())["stage"] == "fit"
    assert json.loads((folder / "results-test.json").read_text())["stage"] == "test"


def test_the_table_says_all_of_it(cli, capsys):
    run = cli("fit", PROTONET)
    shown = capsys.readouterr().out
    answer = results(run)
    assert "6 val, 5-way 1-shot, 2 queries per class" in shown
    assert f"lightning test --config lightning_logs/version_0/config.yaml --ckpt_path {answer['checkpoint']}" in shown
    assert "pixel 1-NN" in shown
    assert "untrained" in shown
    assert OnEpisodes().told("accuracy", answer["metrics"]["accuracy"]) in shown


def test_results_are_json_even_where_a_number_is_not_a_number(cli, capsys):
    run = cli("fit", PROTONET, "--data.episodes.val=1")
    text = (run / "results.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["metrics"]["accuracy"]["ci95"] is None
    print_report(json.loads(text), run, OnEpisodes())


def test_picture_marks_mistakes():
    support, query = torch.rand(5, 1, 28, 28), torch.rand(10, 1, 28, 28)
    labels = torch.arange(5)
    queries = labels.repeat_interleave(2)
    right = drawing.to_pixels(drawing.episode_figure(support, labels, query, queries, queries))
    wrong = drawing.to_pixels(drawing.episode_figure(support, labels, query, queries, (queries + 1) % 5))
    assert right.shape == wrong.shape
    red = np.array([0xC6, 0x28, 0x28])
    assert (np.abs(wrong.astype(int) - red).sum(-1) < 20).sum() > 500
    assert (np.abs(right.astype(int) - red).sum(-1) < 20).sum() == 0


def test_colour_images_can_be_drawn():
    labels = torch.arange(2)
    pixels = drawing.to_pixels(
        drawing.episode_figure(torch.rand(2, 3, 9, 9), labels, torch.rand(2, 3, 9, 9), labels, labels)
    )
    assert pixels.ndim == 3


def test_metric_in_the_interval_is_over_episodes():
    """PITFALLS 12: not over batches, not over predictions."""
    metric, values = EpisodeMean(), torch.rand(40)
    for part in values.split([7, 20, 13]):
        metric.update(part)
    mean, half, *_ = metric.compute()
    assert mean.item() == pytest.approx(values.mean().item())
    assert half.item() == pytest.approx(student(40) * values.std().item() / math.sqrt(40), rel=1e-5)


def test_the_number_of_episodes_is_the_measured_one(cli, capsys):
    run = cli("fit", PROTONET, "--trainer.limit_val_batches=1")
    assert results(run)["episodes"] == 2
    assert "2 val, 5-way" in capsys.readouterr().out


def test_a_fit_without_validation_still_reports(cli):
    answer = results(cli("fit", PROTONET, "--trainer.limit_val_batches=0"))
    assert answer["metrics"] == {}
    assert answer["episodes"] is None


def test_the_best_validation_is_not_one_without_a_number():
    from types import SimpleNamespace

    report = Report()
    report.history = [{"metrics": {"loss": {"value": 0.5}}}, {"metrics": {"loss": {"value": None}}}]
    chooser = SimpleNamespace(monitor="val/loss", mode="min")
    assert report._best(SimpleNamespace(checkpoint_callback=chooser), OnEpisodes())["metrics"]["loss"]["value"] == 0.5


def test_a_monitored_loss_is_minimised_without_saying_so(cli):
    assert results(cli("fit", PROTONET, "--checkpoint.monitor=val/loss"))["protocol"]["selection"] == "min val/loss"


def test_untrained_weights_are_not_called_selected(cli):
    assert "selection" not in results(cli("test", PROTONET))["protocol"]


@pytest.mark.parametrize(("steps", "names"), [(10, ["before adaptation", "after 1 step", "after 10 steps"]),
                                              (1, ["before adaptation", "after 1 step"]), (0, ["method"])])  # fmt: skip
def test_tasks_of_one_variable_are_drawn_through_the_steps(steps, names, monkeypatch):
    """The curves are the method's answers on a grid over the queries, under the right names."""
    module = MAMLModule(MLP((1,), (8,)), num_outputs=1, inner=InnerLoop(steps=steps, lr=0.01)).eval()
    data = EpisodicDataModule(Sinusoids(), task=Task(num_shots=10, num_queries=10))
    data.setup("test")
    tasks = [data.episode("test", index)[:4] for index in range(5)]
    episode = Episode(*(torch.cat(parts) for parts in zip(*tasks, strict=True)))
    drawn = {}

    def look(support_x, support_y, query_x, query_y, grid, curves, deviations):
        assert deviations is None
        drawn.update(grid=grid, curves=curves, query_x=query_x)
        return draw(support_x, support_y, query_x, query_y, grid, curves)

    draw = drawing.regression_figure
    monkeypatch.setattr(drawing, "regression_figure", look)
    with torch.no_grad():
        pixels = drawing.to_pixels(regression_figure(module, episode))
        asked = episode.map(lambda tensor: tensor[:3])._replace(query_x=drawn["grid"].unsqueeze(-1))
        expected = module.adaptation_outputs(asked)
    assert pixels.std() > 10, "an empty picture"
    assert list(drawn["curves"]) == names
    for name, step in zip(names, (0, 1, steps) if steps else (0,), strict=False):
        torch.testing.assert_close(drawn["curves"][name], expected[step].squeeze(-1))
    assert torch.equal(drawn["grid"].amin(1), drawn["query_x"].amin(1))
    assert torch.allclose(drawn["grid"].amax(1), drawn["query_x"].amax(1))


def test_distributions_are_drawn_with_a_band_inside_and_outside_of_the_data():
    torch.manual_seed(0)
    module = CNPModule(RawFeatures((1,)), num_targets=1).eval()
    x, y = torch.rand(2, 12, 1), torch.rand(2, 12, 1)
    with torch.no_grad():
        figure = regression_figure(module, Episode(x[:, :4], y[:, :4], x[:, 4:], y[:, 4:]))
    for task, axis in enumerate(figure.axes):
        band = axis.collections[0].get_paths()[0].vertices
        assert band[:, 0].min() < x[task, 4:].min() - 0.1
        assert band[:, 0].max() > x[task, 4:].max() + 0.1
        place = torch.tensor(float(band[50, 0])).view(1, 1, 1)
        with torch.no_grad():
            own = module(Episode(x[task : task + 1, :4], y[task : task + 1, :4], place, None))
        width = np.ptp(band[np.isclose(band[:, 0], band[50, 0]), 1])
        assert width == pytest.approx(4 * own.stddev.item(), rel=1e-3)


def test_a_regression_run_draws_its_tasks_to_tensorboard_and_png(cli):
    run = cli("fit", ROOT / "configs" / "sinusoid" / "maml.yaml")
    assert np.asarray(Image.open(run / "figures" / "val_episode.png")).std() > 10
    events = EventAccumulator(str(run)).Reload()
    assert "val_episode" in events.Tags()["images"]


def test_a_validation_that_is_not_a_number_leaves_a_gap_in_the_curve(cli):
    """The inner loop of an evaluation may diverge; training goes on, and so do the pictures."""
    run = cli(
        "fit", ROOT / "configs" / "sinusoid" / "maml.yaml", "--trainer.max_epochs=3", "--model.inner.lr=1e30",
        "--model.inner.train_lr=0.01",
    )  # fmt: skip
    assert results(run)["metrics"]["mse"]["value"] is None
    assert (run / "figures" / "learning_curve.png").exists()
