"""Evaluations: what scores a method, and that nobody else needs to know which."""

from __future__ import annotations

import json
import math
from typing import ClassVar, NamedTuple

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric

from contract import episode
from metatransfer import (
    MLP,
    BestCheckpoint,
    Conv4,
    Episode,
    Episodes,
    EpisodicDataModule,
    EpisodicModule,
    Evaluation,
    Figures,
    LabelledBatch,
    MethodModule,
    OnEpisodes,
    OnSamples,
    OnTarget,
    PretrainModule,
    ProtoNetModule,
    Report,
    Sinusoids,
    Task,
    TokenAverage,
    Tokens,
    UserError,
)
from metatransfer.batches import DomainSamples, PredictionTask
from metatransfer.data_info import DataInfo
from metatransfer.methods.evaluation.base import BaselineScores


class Gaussian(NamedTuple):
    mean: Tensor
    variance: Tensor

    def log_prob(self, targets):
        return torch.distributions.Normal(self.mean, self.variance.sqrt()).log_prob(targets)


class Parts(NamedTuple):
    """No log_prob: scored and learned by its mean."""

    mean: Tensor
    other: Tensor


class Regressor(EpisodicModule):
    """Adds the mean of the support targets to what a network says."""

    num_outputs = 1

    def __init__(self, kind=Gaussian):
        super().__init__()
        self.backbone, self.kind = MLP((1,), (4,)), kind
        self.head = nn.Linear(4, 2)

    def fit_tasks(self, support_x, support_y):
        return support_y.mean(1, keepdim=True)

    def predict_tasks(self, state, query_x):
        mean, raw = self.head(self.backbone(query_x.flatten(0, 1))).unflatten(0, query_x.shape[:2]).split(1, -1)
        if self.kind is torch.distributions.Normal:
            return self.kind(mean + state, F.softplus(raw))
        return self.kind(mean + state, F.softplus(raw))


def sinusoids(tasks=3):
    torch.manual_seed(0)
    return Episode(torch.rand(tasks, 5, 1), torch.rand(tasks, 5, 1), torch.rand(tasks, 4, 1), torch.rand(tasks, 4, 1))


def scored(module, batch):
    module.eval()
    with torch.no_grad():
        module.validation_step(batch, 0)
    return module.evaluation.metrics["val"].compute()


# ---- outputs of any kind


@pytest.mark.parametrize("kind", [Gaussian, Parts, torch.distributions.Normal])
def test_outputs_that_are_distributions(kind):
    torch.manual_seed(0)
    module, batch = Regressor(kind), sinusoids()
    loss = module.training_step(batch, 0)
    loss.backward()
    outputs = module(batch)
    squared = (outputs.mean - batch.query_y).square().mean()
    likely = squared if kind is Parts else -outputs.log_prob(batch.query_y).mean()
    torch.testing.assert_close(loss, likely)
    found = scored(module, batch)
    assert float(found["mse"]) == pytest.approx(float(squared))
    assert float(found["loss"]) == pytest.approx(float(likely))
    assert "calibration_error" not in found
    predictor = module.adapt(batch.support_x[0], batch.support_y[0])
    torch.testing.assert_close(predictor.predict(batch.query_x[0]), outputs.mean[0])
    if kind is not torch.distributions.Normal:
        assert predictor.outputs(batch.query_x[0])[1].shape == (4, 1)


def test_outputs_without_a_mean_ask_for_the_hooks():
    module = Regressor(lambda mean, raw: (mean, raw))
    with pytest.raises(UserError, match=r"tuple .*define score\(outputs, targets\) and loss"):
        module.training_step(sinusoids(), 0)


def test_a_methods_own_score_and_loss_are_used():
    class Absolute(Regressor):
        def loss(self, outputs, targets):
            return (outputs.mean - targets).abs().mean()

        def score(self, outputs, targets):
            return (outputs.mean - targets).abs().flatten(1).amax(1)

    torch.manual_seed(0)
    module, batch = Absolute(Parts), sinusoids()
    found, outputs = scored(module, batch), module(batch)
    wrong = (outputs.mean - batch.query_y).abs().flatten(1)
    assert float(found["mse"]) == pytest.approx(float(wrong.amax(1).mean()))
    assert float(found["loss"]) == pytest.approx(float(wrong.mean()))
    torch.testing.assert_close(module.training_step(batch, 0), wrong.mean())


# ---- texts


def texts(*shape, seed=0):
    ids = torch.randint(1, 20, (*shape, 6), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    mask[..., 4:] = 0
    return Tokens(ids, mask)


def test_few_shot_texts_are_learned_scored_and_adapted_to():
    module = PretrainModule(TokenAverage(20), num_classes=4)
    batch = LabelledBatch(texts(8), torch.arange(8) % 4)
    module.training_step(batch, 0).backward()
    labels = torch.arange(3).repeat(2, 1)
    tasks = Episode(texts(2, 3), labels, Tokens(*(part[..., :5] for part in texts(2, 3, seed=1))), labels)
    assert scored(module, tasks)["episodes"] == 2
    support, query = (Tokens(*(part[0] for part in x)) for x in (tasks.support_x, tasks.query_x))
    probabilities = module.adapt(support, ["a", "b", "c"]).predict_proba(query)
    torch.testing.assert_close(probabilities, module(tasks)[0].softmax(-1))
    answers = module.predict_step(PredictionTask(support, ("a", "b", "c"), query, ("1", "2", "3")))
    assert answers.classes == ("a", "b", "c")
    with pytest.raises(UserError, match="3 samples, but support_y has 2 labels"):
        module.adapt(support, ["a", "b"])


def test_networks_for_images_refuse_texts():
    labels = torch.arange(3).repeat(2, 1)
    tasks = Episode(texts(2, 3), labels, texts(2, 3), labels)
    with pytest.raises(UserError, match="Conv4 takes tensors, but the data module serves texts"):
        ProtoNetModule(Conv4(hidden_channels=4)).validation_step(tasks, 0)


class Served(pl.LightningDataModule):
    """Describes data of one kind."""

    def __init__(self, **info):
        super().__init__()
        self._info = DataInfo(Episode, **info)

    def info(self):
        return self._info

    def protocol(self):
        return {"data": "Served"}


def attached(module, data):
    module.trainer = pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    module.trainer.datamodule = data
    return module


def test_features_of_the_file_of_weights_are_the_baseline_of_training_on(tmp_path):
    torch.manual_seed(0)
    start = Conv4(hidden_channels=4).eval()
    torch.save(start.state_dict(), tmp_path / "start.pt")
    module = ProtoNetModule(Conv4(hidden_channels=4, weights=str(tmp_path / "start.pt"))).double()
    with torch.no_grad():
        for value in module.parameters():  # trained on
            value.add_(1)
    before = torch.get_rng_state()
    baseline = module.baselines()["frozen features"]
    assert torch.equal(torch.get_rng_state(), before)
    batch = episode().map(lambda part: part.double() if part.is_floating_point() else part)
    with torch.no_grad():
        found = baseline(batch)
        features = start.double()(batch.support_x[1])
        means = torch.stack([features[batch.support_y[1] == way].mean(0) for way in range(3)])
        expected = [F.cosine_similarity(query, means) for query in start(batch.query_x[1])]
    torch.testing.assert_close(found[1], 10 * torch.stack(expected))
    (tmp_path / "start.pt").unlink()
    assert "frozen features" not in module.baselines()


@pytest.mark.parametrize(
    ("shape", "name"), [((1, 28, 28), "pixel 1-NN"), ((7,), "1-NN"), ((), None)], ids=["images", "rows", "texts"]
)
def test_neighbours_are_looked_for_where_there_are_distances(shape, name):
    module = attached(ProtoNetModule(Conv4(hidden_channels=4)), Served(sample_shape=shape))
    assert list(module.baselines()) == [*([name] if name else []), "untrained"]


# ---- selection and words


@pytest.mark.parametrize(
    ("evaluation", "info", "expected"),
    [
        (OnEpisodes(), None, ("val/accuracy", "max")),
        (OnEpisodes(), DataInfo(Episode, num_targets=1), ("val/mse", "min")),
        (OnSamples(3), None, ("val/accuracy", "max")),
        (OnTarget(3), None, ("val/selection", "max")),
    ],
)
def test_what_selects_follows_the_data(evaluation, info, expected):
    assert evaluation.monitored(info) == expected
    assert evaluation.mode_of(expected[0]) == expected[1]
    assert evaluation.mode_of("val/loss") == "min"


def test_a_regression_is_selected_by_its_error(tmp_path):
    chooser, data = (
        BestCheckpoint(),
        EpisodicDataModule(
            Sinusoids(), task=Task(num_shots=10, num_queries=10), episodes=Episodes(train=4, val=4, per_batch=2)
        ),
    )
    trainer(tmp_path, chooser).fit(Regressor(), data)
    assert (chooser.monitor, chooser.mode) == ("val/mse", "min")
    assert chooser.best_model_score is not None


def test_only_a_withheld_metric_is_an_obstacle():
    assert "labels of the target" in OnTarget(3).obstacle("oracle/accuracy", None)
    assert OnTarget(3).obstacle("oracle/accuracy", DataInfo(DomainSamples, oracle="select")) is None
    assert OnTarget(3).obstacle("val/entropy", None) is None
    assert OnSamples(3).obstacle("oracle/accuracy", None) is None


def test_numbers_are_told_in_their_units():
    assert OnSamples(3).told("far/accuracy", {"value": 0.9822, "ci95": 0.002}) == "98.22 ± 0.20 %"
    assert OnSamples(3).told("loss", {"value": 0.5}) == "0.5000"
    assert OnTarget(3).told("source_accuracy", {"value": 0.5}) == "50.00 %"
    assert OnEpisodes().told("mse", {"value": None}) == "not a number"
    few = {"value": 11 / 12, "ci95": 0.169, "low": 0.646, "high": 0.985, "of": 12.0}
    assert OnSamples(3).told("accuracy", few) == "91.7 % [64.6, 98.5] (11 of 12)"
    assert OnSamples(3).told("accuracy", few | {"of": 120.0}) == "91.7 % [64.6, 98.5]"


def test_a_diverged_method_says_so_in_one_sentence():
    results = {"metrics": {"accuracy": {"value": None}}, "samples": 12}
    assert "lower learning rate" in dict(OnSamples(3).remarks(results))["diverged"]
    assert OnSamples(3).remarks(results | {"samples": 0}) == []
    assert OnSamples(3).remarks({"metrics": {"accuracy": {"value": 0.5}}, "samples": 12}) == []


def test_baselines_are_scored_as_a_whole_and_for_each_test_set():
    module, batch = ProtoNetModule(Conv4(hidden_channels=4)), episode()
    evaluation = module.evaluation
    right = lambda part: F.one_hot(part.query_y, 3).float()  # noqa: E731
    module.baselines = lambda: {"right": right, "wrong": lambda part: -right(part)}
    evaluation.test_names = ("near", "far")
    scores = BaselineScores(module, "test")
    scores.update(batch, 0)
    scores.update([batch, batch], 1)
    found = scores.compute()
    names = ("accuracy", "near/accuracy", "far/accuracy")
    assert [found["right"][name] for name in names] == [1, 1, 1]
    assert found["wrong"]["accuracy"] == found["wrong"]["accuracy_low"] == 0
    assert 0 < found["right"]["near/accuracy_low"] < found["right"]["far/accuracy_low"] < 1, "more episodes tell more"


# ---- an evaluation that nobody knows


class Returns(nn.Module):
    def __init__(self):
        super().__init__()
        self.mean = MeanMetric()

    def update(self, values):
        self.mean.update(values)

    def compute(self):
        return {"return": self.mean.compute()}

    def reset(self):
        self.mean.reset()


class OnReturns(Evaluation):
    """A score of its own, as reinforcement learning would have it."""

    monitor: ClassVar[str] = "val/return"

    def __init__(self):
        super().__init__()
        self.score_name = "return"

    def make_metrics(self):
        return Returns()

    def step(self, module, batch, stage, place=0):
        for metrics in self.collectors(stage, place):
            metrics.update(module.play(batch[0]))

    def baselines(self, module):
        return {"does nothing": lambda batch: torch.zeros(len(batch[0]))}

    def baseline_scores(self, module, baseline, batch):
        return baseline(batch)


class Player(MethodModule):
    learns_from = tuple

    def __init__(self):
        super().__init__(OnReturns(), torch.optim.Adam)
        self.policy = nn.Linear(2, 1)

    def play(self, x):
        return torch.tanh(self.policy(x)).squeeze(-1)

    def training_step(self, batch, batch_idx):
        return -self.play(batch[0]).mean()


def trainer(folder, *callbacks, **arguments):
    settings = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return pl.Trainer(default_root_dir=folder, callbacks=list(callbacks), **(settings | {"max_epochs": 2} | arguments))


def test_report_checkpoint_and_figures_serve_an_evaluation_of_the_users(tmp_path, capsys):
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(8, 2)), batch_size=4)
    chooser = BestCheckpoint()
    running = trainer(tmp_path, chooser, Report(), Figures())
    running.fit(Player(), data, data)
    assert (chooser.monitor, chooser.mode) == ("val/return", "max")
    assert math.isfinite(chooser.best_model_score)
    written = json.loads(next(tmp_path.rglob("results.json")).read_text())
    assert written["baselines"] == {"does nothing": {"return": {"value": 0.0, "ci95": 0.0}}}
    assert written["metrics"]["return"]["value"] == pytest.approx(float(chooser.best_model_score))
    assert next(tmp_path.rglob("learning_curve.png"))
    assert "does nothing" in capsys.readouterr().out
