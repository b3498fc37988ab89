"""What transfer is worth: both twins see the same, nothing else is touched, and the interval is Student's."""

from __future__ import annotations

import copy
import csv
import json
import os
import random
from functools import partial

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image

from metatransfer import (
    BestCheckpoint,
    Collection,
    Conv4,
    Figures,
    FineTuneModule,
    FrozenFeaturesModule,
    HeadOnly,
    LabelledDataModule,
    Report,
    TensorSource,
    Texts,
    TokenAverage,
    TransferGain,
    UserError,
)
from metatransfer.experiments.comparing import by_entry, measure_twins
from metatransfer.experiments.intervals import Interval, verdict
from metatransfer.experiments.training import Budget
from metatransfer.methods.twins import TRANSFER
from serving_by_names import grouped

CLASSES = 3
BUDGET = Budget(1, settings={"accelerator": "cpu"})


def measured(method, labelled, seeds, budget=BUDGET, **arguments):
    return by_entry(
        [measure_twins(method, labelled, seed=seed, budget=budget, baselines=True, **arguments) for seed in seeds]
    )


def gain_of(scores):
    return Interval.of_gain(scores["transfer"], scores["from scratch"])


class Pictures(Collection):
    """Three kinds of noisy pictures."""

    def parts(self):
        generator = torch.Generator().manual_seed(0)
        labels = np.arange(60) % CLASSES
        means = torch.rand(CLASSES, 1, 16, 16, generator=generator)
        x = (means[labels] + 0.6 * torch.rand(60, 1, 16, 16, generator=generator)).clamp(0, 1)
        return {"all": TensorSource(x, labels, [f"class {i}" for i in range(CLASSES)], "blobs")}


class Blobs(LabelledDataModule):
    """Notes what is served."""

    served: list[tuple[str, int, list[int]]] = []  # noqa: RUF012 - of one test

    def __init__(self, source=None, **options):
        super().__init__(source or Pictures(), **grouped(options))

    def train_dataloader(self):
        split = self.split("train")
        order = self._sampler("train", training=True).order(0)
        Blobs.served.append(("train", self.seed, split.indices[order].tolist()))
        return super().train_dataloader()


class Divided(Pictures):
    """Divided already: no seed changes the test."""

    def parts(self):
        whole = super().parts()["all"]
        rows = {"train": slice(0, 30), "val": slice(30, 42), "test": slice(42, 60)}
        return {
            name: TensorSource(whole.data[part], whole.labels[part], whole.class_names, name)
            for name, part in rows.items()
        }


def Given(**options):
    return Blobs(Divided(), **options)


def data(kind=Blobs, **arguments):
    Blobs.served.clear()
    return kind(**{"batch_size": 8, "labels_per_class": 4, **arguments})


def module(**arguments):
    torch.manual_seed(0)
    backbone = Conv4(image_size=16, hidden_channels=4, dropout=0.2)
    return FineTuneModule(
        backbone, CLASSES, policy=HeadOnly(), optimizer=partial(torch.optim.AdamW, lr=0.02), **arguments
    )


def trainer(folder, *callbacks, **arguments):
    settings = {
        "logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu",
        "max_epochs": 1, "enable_checkpointing": False,
    }  # fmt: skip
    return pl.Trainer(default_root_dir=folder, callbacks=list(callbacks), **(settings | arguments))


# ---- the measurement


def test_both_twins_of_a_seed_see_the_same_and_seeds_differ():
    scores = measured(module(), data(), [0, 1, 7])
    assert [seed for _, seed, _ in Blobs.served] == [0, 0, 1, 1, 7, 7]
    samples = [rows for *_, rows in Blobs.served]
    assert samples[0] == samples[1]
    assert samples[2] == samples[3]
    assert len({tuple(sorted(rows)) for rows in samples}) == 3, "every seed draws labels of its own"
    assert set(scores) == {"transfer", "from scratch", "most frequent class", "pixel 1-NN"}
    assert {len(values) for values in scores.values()} == {3}
    counts = [18 * value for values in scores.values() for value in values]
    assert counts == pytest.approx([round(count) for count in counts]), "fractions of the 18 test samples"


def test_it_is_reproducible_and_touches_nothing():
    method, labelled = module(), data()
    labelled.setup("fit")
    samples = {name: part.indices.copy() for name, part in labelled.splits.parts.items()}
    state, modes = copy.deepcopy(method.state_dict()), [part.training for part in method.modules()]
    wanted = [value.requires_grad for value in method.parameters()]

    def outside():
        return (
            torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate(),
            {name: value for name, value in os.environ.items() if name.startswith("PL_")},
        )  # fmt: skip

    before = outside()
    first = measured(method, labelled, [3, 4])
    assert outside() == before
    torch.rand(5)
    random.random()
    assert measured(method, labelled, [3, 4]) == first
    assert all(torch.equal(value, state[name]) for name, value in method.state_dict().items())
    assert [part.training for part in method.modules()] == modes
    assert [value.requires_grad for value in method.parameters()] == wanted
    assert method._trainer is None
    assert labelled.trainer is None
    assert (labelled.seed, labelled.labels_per_class) == (0, 4)
    assert all(np.array_equal(part.indices, samples[name]) for name, part in labelled.splits.parts.items())


def test_scores_are_those_of_trainings_by_hand():
    """Last weights, the whole test split; baselines on the very same batches."""
    method, labelled = module(), data(Given)
    scores = measured(method, labelled, [2])
    twin = labelled.reseeded(2)
    for name, learner in (("transfer", method.restarted(2)), ("from scratch", method.from_scratch(2))):
        pl.seed_everything(2, verbose=False)
        run = trainer(None, limit_val_batches=0)
        run.fit(learner, datamodule=twin)
        assert run.test(learner, datamodule=twin, verbose=False)[0]["test/accuracy"] == scores[name][0]
    test = twin.split("test")
    frequent = int(np.argmax(twin.info().class_counts))
    assert scores["most frequent class"] == [pytest.approx(np.mean(test.labels == frequent))]

    short = Budget(1, settings={"accelerator": "cpu", "limit_test_batches": 1})
    few = measured(method, labelled, [2], short)
    assert few["most frequent class"] == [pytest.approx(np.mean(test.labels[:8] == frequent))]


def test_on_the_validation_split():
    scores = measured(module(), data(Given), [0], split="val")
    assert scores["most frequent class"] == [pytest.approx(1 / 3)]


def test_what_is_not_reseeded_is_the_same_for_all(tmp_path):
    class Fixed(pl.LightningDataModule):
        def __init__(self):
            super().__init__()
            self.inner = data()
            self.train_dataloader, self.test_dataloader = self.inner.train_dataloader, self.inner.test_dataloader

    fixed = Fixed()
    fixed.trainer = run = trainer(tmp_path)
    scores = measured(module(), fixed, [0, 1])
    assert set(scores) == {"transfer", "from scratch"}
    assert len({tuple(rows) for *_, rows in Blobs.served}) == 1
    assert fixed.trainer is run


# ---- the callback


def test_the_callback_takes_as_many_seeds_as_it_was_told(tmp_path):
    labelled = data()
    trainer(tmp_path, TransferGain(seeds=3)).fit(module(), datamodule=labelled)
    seeds = [seed for _, seed, _ in Blobs.served]
    assert seeds[-6:] == [0, 0, 1, 1, 2, 2], "both twins of every seed, after the fit itself"


def test_a_fit_writes_the_gain_as_json_and_picture(tmp_path, capsys):
    gain = TransferGain(seeds=3)
    run = trainer(tmp_path, gain, Report(), Figures())
    method, labelled = module(), data(Given)
    start = copy.deepcopy(method)
    run.fit(method, datamodule=labelled)
    trained = copy.deepcopy(method.state_dict())
    folder = tmp_path / "lightning_logs" / "version_0"
    found = json.loads((folder / "transfer_gain.json").read_text())
    Blobs.served.clear()
    again = measured(start, data(Given), range(3))
    for name, values in again.items():
        interval = Interval.of(values)
        assert found["accuracy"][name] == interval._asdict()
    assert found["gain"]["values"] == gain_of(again).values
    assert found["verdict"] == verdict(gain_of(again), TRANSFER)
    assert (found["seeds"], found["split"], found["epochs"]) == (3, "test", 1)
    assert found["samples"] == 18
    shown = " ".join(capsys.readouterr().out.split())
    assert found["verdict"] in shown
    assert "One of the 18 samples is 5.6 points." in shown
    assert f"The comparison took {found['seconds']:.0f} s" in shown
    for name, values in again.items():
        assert f"{name}: {Interval.of(values).over_samples(18)} (test accuracy, 3 seeds)" in shown
    pixels = np.asarray(Image.open(folder / "figures" / "transfer_gain.png").convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20
    # the fit's own method and Trainer go on as if nothing had happened
    assert run.datamodule is labelled
    assert method.trainer is run
    assert run.test(method, datamodule=labelled, verbose=False)[0]["test/samples"] == 18
    assert all(torch.equal(value, trained[name]) for name, value in method.state_dict().items())


def test_a_callback_that_is_not_asked_does_nothing(tmp_path):
    method, labelled = module(), data()
    run = trainer(tmp_path, TransferGain(seeds=1), fast_dev_run=True)
    run.fit(method, datamodule=labelled)
    trainer(tmp_path, TransferGain(seeds=1)).test(method, datamodule=labelled, verbose=False)
    assert not list(tmp_path.rglob("transfer_gain.*"))


def test_checkpoints_of_the_fit_are_its_own(tmp_path):
    run = trainer(tmp_path, TransferGain(seeds=1), BestCheckpoint(), enable_checkpointing=True)
    run.fit(module(), datamodule=data())
    assert len([path for path in tmp_path.rglob("*.ckpt") if path.name != "last.ckpt"]) == 1
    found = json.loads(next(tmp_path.rglob("transfer_gain.json")).read_text())
    assert found["gain"]["ci95"] is None
    assert "in one seed only" in found["verdict"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"seeds": 0}, "seeds must be a number above 0"),
        ({"split": "train"}, "split must be one of val, test, but is 'train'"),
    ],
)
def test_wrong_arguments(arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        TransferGain(**arguments)


def test_what_it_cannot_do_is_refused_before_the_fit(tmp_path, monkeypatch):
    def refused(sentence, method=None, labelled=None, gain=None, **settings):
        run = trainer(tmp_path, gain or TransferGain(), **settings)
        with pytest.raises(UserError, match=sentence):
            run.fit(method or module(), datamodule=labelled or data())
        assert run.global_step == 0

    frozen = FrozenFeaturesModule(Conv4(image_size=16, hidden_channels=4), CLASSES, cache_dir=str(tmp_path))
    refused("FrozenFeaturesModule has no such twins: remove the callback", frozen)
    refused("limit_test_batches is 0: raise it", limit_test_batches=0)
    refused("limit_val_batches is 0", gain=TransferGain(split="val"), limit_val_batches=0)

    class Untested(Divided):
        def parts(self):
            return {name: part for name, part in super().parts().items() if name != "test"}

    refused("Untested has no test split", labelled=data(partial(Blobs, Untested())))
    with pytest.raises(UserError, match="give the Trainer a data module instead of loaders"):
        trainer(tmp_path, TransferGain()).fit(module(), train_dataloaders=[1])

    class Stubborn(Conv4):
        """A layer that cannot start afresh."""

        def __init__(self):
            super().__init__(image_size=16, hidden_channels=4)
            self.scale = torch.nn.Parameter(torch.ones(1))

        def forward(self, x):
            return super().forward(x) * self.scale

    refused("Stubborn does not define reset_parameters", FineTuneModule(Stubborn(), CLASSES))
    monkeypatch.setattr(pl.Trainer, "world_size", property(lambda _: 2))
    run = trainer(tmp_path)
    with pytest.raises(UserError, match="TransferGain trains in one process"):
        TransferGain().setup(run, module(), "fit")


def test_words_of_every_division_are_refused(tmp_path):
    path = tmp_path / "texts.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows([f"word{i} word{i % 7}", f"kind {i % 2}"] for i in range(60))
    texts = LabelledDataModule(Texts(str(path)))
    method = FineTuneModule(TokenAverage(texts.info().vocabulary_size), 2)
    with pytest.raises(UserError, match="TransferGain cannot compare with tokenizer=words"):
        trainer(tmp_path, TransferGain()).fit(method, datamodule=texts)
