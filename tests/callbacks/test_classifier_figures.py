"""What a classifier gets right and wrong: pictures that show something, and a table against scikit-learn."""

from __future__ import annotations

import csv
import io
from functools import partial

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import precision_recall_fscore_support
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from metatransfer import (
    MLP,
    Arrays,
    Collection,
    Conv4,
    Figures,
    FineTuneModule,
    LabelledDataModule,
    Report,
    TensorSource,
    Texts,
    TokenAverage,
)
from metatransfer.drawing import classifiers as classifier_drawing
from metatransfer.drawing import episodes as drawing
from metatransfer.methods.evaluation.on_samples import class_table, most_confident_mistakes
from metatransfer.metrics import Answers, ClassifierMetrics, reliability
from serving_by_names import labelled

NAMES = ("plain", "two words", "$5 to $9", "日本")
CLASSES = len(NAMES)


class BlobsParts(Collection):
    """Four kinds of noisy pictures, hard to tell apart."""

    colours = 1

    def parts(self):
        generator = torch.Generator().manual_seed(0)
        labels = np.arange(120) % CLASSES
        means = torch.rand(CLASSES, self.colours, 16, 16, generator=generator)
        x = (0.2 * means[labels] + 0.8 * torch.rand(120, self.colours, 16, 16, generator=generator)).clamp(0, 1)
        return {"all": TensorSource(x, labels, NAMES, "blobs")}


def Blobs(**options):
    return labelled(BlobsParts(), **options)


class ColoursParts(BlobsParts):
    """The same in colour."""

    colours = 3


def Colours(**options):
    return labelled(ColoursParts(), **options)


def module(colours=1):
    torch.manual_seed(0)
    backbone = Conv4(in_channels=colours, image_size=16, hidden_channels=4)
    return FineTuneModule(backbone, CLASSES, optimizer=partial(torch.optim.AdamW, lr=0.001))


pytestmark = pytest.mark.filterwarnings("ignore:Glyph")  # no font has them all


def trainer(folder, *callbacks, **arguments):
    settings = {
        "logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu",
        "max_epochs": 1, "enable_checkpointing": False,
    }  # fmt: skip
    return pl.Trainer(default_root_dir=folder, callbacks=list(callbacks), **(settings | arguments))


def looks_like_something(path):
    image = Image.open(path)
    assert image.format == "PNG"
    pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    assert len(pixels) > 40_000, "too small to read"
    assert len(np.unique(pixels, axis=0)) > 20
    assert pixels.std() > 10, "an empty picture"


def pictures(folder):
    return {path.stem: path for path in folder.rglob("figures/*.png")}


# ---- through the Trainer


def test_every_stage_draws_its_own(tmp_path):
    method, data = module(), Blobs(val_fraction=0.2)
    logger = pl.loggers.TensorBoardLogger(tmp_path)
    run = trainer(tmp_path, Report(), Figures(), max_epochs=2, logger=logger, log_every_n_steps=1)
    run.fit(method, datamodule=data)
    found = pictures(tmp_path)
    assert set(found) == {"val_confusion", "val_calibration", "val_mistakes", "learning_curve"}
    for path in found.values():
        looks_like_something(path)
    assert set(EventAccumulator(logger.log_dir).Reload().Tags()["images"]) == set(found)
    for stage, name in (("validate", "val"), ("test", "test")):
        folder = tmp_path / stage
        run = trainer(folder, Figures())
        numbers = getattr(run, stage)(method, datamodule=data, verbose=False)[0]
        assert set(pictures(folder)) == {f"{name}_confusion", f"{name}_calibration", f"{name}_mistakes"}
        rows = list(csv.DictReader(next(folder.rglob(f"{name}_classes.csv")).open(encoding="utf-8")))
        assert [row["class"] for row in rows] == list(NAMES)
        assert sum(int(row["samples"]) for row in rows) == numbers[f"{name}/samples"]
        recalls = [float(row["recall"]) * int(row["samples"]) for row in rows]
        assert sum(recalls) / numbers[f"{name}/samples"] == pytest.approx(numbers[f"{name}/accuracy"], abs=1e-3)


def test_pictures_in_colour(tmp_path):
    run = trainer(tmp_path, Figures(mistakes=4))
    run.test(module(3), datamodule=Colours(), verbose=False)
    looks_like_something(found := pictures(tmp_path)["test_mistakes"])
    pixels = np.asarray(Image.open(found).convert("RGB")).reshape(-1, 3).astype(int)
    assert (pixels.max(1) - pixels.min(1) > 60).mean() > 0.2


def test_the_pictures_are_those_of_the_last_validation(tmp_path, monkeypatch):
    """Not of the sanity check before, whatever it answered."""
    shown = {}

    def look(confusion, names):
        shown["confusion"] = confusion.clone()
        return draw(confusion, names)

    draw = classifier_drawing.confusion_figure
    monkeypatch.setattr(classifier_drawing, "confusion_figure", look)
    method, data = module(), Blobs(val_fraction=0.3)
    trainer(tmp_path, Figures(), num_sanity_val_steps=2).fit(method, datamodule=data)
    assert shown.pop("confusion").sum() == len(data.split("val"))
    # without a validation there is nothing to show
    quiet = tmp_path / "quiet"
    for settings in ({"limit_val_batches": 0}, {"check_val_every_n_epoch": 5}, {"fast_dev_run": True}):
        trainer(quiet, Figures(), **settings).fit(module(), datamodule=Blobs())
    assert not shown
    assert not pictures(quiet)


def test_mistakes_are_the_most_confident_wrong_answers(tmp_path, monkeypatch):
    shown = {}

    def look(samples, captions):
        shown.update(samples=samples, captions=captions)
        return draw(samples, captions)

    draw = classifier_drawing.mistakes_figure
    monkeypatch.setattr(classifier_drawing, "mistakes_figure", look)
    method, data = module(), Blobs(val_fraction=0.2)
    trainer(tmp_path, Figures(mistakes=5)).test(method, datamodule=data, verbose=False)
    parts = list(data.test_dataloader())
    x, y = torch.cat([part.x for part in parts]), torch.cat([part.y for part in parts])
    with torch.no_grad():
        probabilities = method.eval()(x).softmax(1)
    sure, answer = probabilities.max(1)
    wrong = sorted((i for i in range(len(y)) if answer[i] != y[i]), key=lambda i: -float(sure[i]))[:5]
    assert len(shown["samples"]) == 5
    for sample, caption, place in zip(shown["samples"], shown["captions"], wrong, strict=True):
        assert torch.equal(sample, x[place])
        assert caption == f"{NAMES[y[place]]}, taken for {NAMES[answer[place]]} ({float(sure[place]):.0%})"


def test_answers_that_are_no_numbers_are_no_confident_mistakes():
    confidence = torch.tensor([0.9, torch.nan, 0.4, 0.8])
    target = torch.tensor([0, 1, 1, 1])
    answers = Answers(torch.arange(4), target, torch.zeros(4, dtype=torch.int64), confidence, confidence)
    assert [number for number, *_ in most_confident_mistakes(answers, 12)] == [3, 2]


def test_without_mistakes_there_is_no_picture_of_them(tmp_path):
    easy = LabelledDataModule(
        Arrays.from_arrays(np.repeat(np.eye(3, dtype=np.float32), 20, 0), np.repeat(np.arange(3), 20))
    )
    torch.manual_seed(0)
    method = FineTuneModule(MLP((3,), (16,)), 3, optimizer=partial(torch.optim.Adam, lr=0.1))
    run = trainer(tmp_path, Figures(), max_epochs=6, limit_val_batches=1)
    run.fit(method, datamodule=easy)
    assert run.callback_metrics["val/accuracy"] == 1
    assert set(pictures(tmp_path)) == {"val_confusion", "val_calibration"}


def test_mistaken_rows_of_numbers_are_shown_as_sentences(tmp_path, monkeypatch):
    class Rows(Collection):
        def parts(self):
            x = torch.rand(60, 5, generator=torch.Generator().manual_seed(0))
            return {"all": TensorSource(x, np.arange(60) % 3, ["a", "b", "c"], "rows")}

    def look(samples, captions):
        shown.extend(samples)
        return draw(samples, captions)

    shown, draw = [], classifier_drawing.mistakes_figure
    monkeypatch.setattr(classifier_drawing, "mistakes_figure", look)
    method, data = FineTuneModule(MLP((5,), (4,)), 3), LabelledDataModule(Rows())
    trainer(tmp_path, Figures()).test(method, datamodule=data, verbose=False)
    looks_like_something(pictures(tmp_path)["test_mistakes"])
    sentences = {
        ", ".join(f"{value:.4g}" for value in row.tolist()) for part in data.test_dataloader() for row in part.x
    }
    assert shown
    assert set(shown) <= sentences


def test_what_cannot_be_shown_is_not_drawn(tmp_path):
    """Loaders without a data module show no samples."""
    loader = Blobs().test_dataloader()
    trainer(tmp_path, Figures()).test(module(), dataloaders=loader, verbose=False)
    assert set(pictures(tmp_path)) == {"test_confusion", "test_calibration"}


def test_mistaken_texts_are_shown_as_sentences(tmp_path):
    path = tmp_path / "texts.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows([f"costs ${i} or ${i + 1}, " + "very " * i + "much", f"kind {i % 2}"] for i in range(60))
    data = LabelledDataModule(Texts(str(path)))
    method = FineTuneModule(TokenAverage(data.info().vocabulary_size), 2)
    trainer(tmp_path, Figures()).test(method, datamodule=data, verbose=False)
    looks_like_something(pictures(tmp_path)["test_mistakes"])


def test_other_methods_are_left_alone(tmp_path):
    class Other(pl.LightningModule):
        def test_step(self, batch, batch_idx):
            self.log("test/loss", batch.x.sum())

    trainer(tmp_path, Figures()).test(Other(), datamodule=Blobs(), verbose=False)
    assert not pictures(tmp_path)


# ---- the table


def test_the_table_against_scikit_learn():
    generator = np.random.default_rng(0)
    target = generator.integers(0, 4, 100)
    answer = np.where(generator.random(100) < 0.6, target, generator.integers(0, 4, 100))
    confusion = np.zeros((5, 5), int)
    for pair in zip(target, answer, strict=True):
        confusion[pair] += 1
    names = ("a", "b, with a comma", "c", "d", "never")
    rows = list(csv.DictReader(io.StringIO(class_table(confusion.tolist(), names))))
    precision, recall, f1, support = precision_recall_fscore_support(target, answer, labels=range(4), zero_division=0)
    for place, row in enumerate(rows[:4]):
        assert row["class"] == names[place]
        assert int(row["samples"]) == support[place]
        found = [float(row[name]) for name in ("precision", "recall", "f1")]
        assert found == pytest.approx([precision[place], recall[place], f1[place]], abs=5e-5)
        others = {name: count for name, count in zip(names, confusion[place], strict=True) if name != names[place]}
        assert others[row["most often taken for"]] == max(others.values())
    assert list(rows[4].values()) == ["never", "0", "", "", "", ""]


def test_the_table_where_numbers_have_no_meaning():
    # no sample of a, but answers; b never answered; c always right
    rows = list(csv.reader(io.StringIO(class_table([[0, 0, 0], [2, 0, 2], [0, 0, 3]], ("a", "b", "c")))))
    assert rows[1:] == [
        ["a", "0", "0.0000", "", "0.0000", ""],
        ["b", "4", "", "0.0000", "0.0000", "a"],
        ["c", "3", "0.6000", "1.0000", "0.7500", ""],
    ]


# ---- the drawings


@pytest.mark.grid(3)
@pytest.mark.parametrize("count", [2, 12, 77])
def test_confusion_of_any_number_of_classes(count):
    confusion = torch.randint(0, 4, (count, count)) + 30 * torch.eye(count, dtype=torch.int64)
    pixels = drawing.to_pixels(classifier_drawing.confusion_figure(confusion, [f"class {i}" for i in range(count)]))
    assert min(pixels.shape[:2]) > 200
    assert max(pixels.shape[:2]) < 2500
    assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 10


def test_calibration_of_one_answer():
    metrics = ClassifierMetrics(3)
    metrics.update(torch.tensor([[3.0, 1.0, 0.0]]), torch.tensor([1]))
    figure = classifier_drawing.calibration_figure(*reliability(metrics.answers()), 0.84)
    assert drawing.to_pixels(figure).std() > 10


def test_formulas_and_many_lines_are_only_text():
    samples = ["$x^$ broken {", "a\nb\tc " * 100, ""]
    figure = classifier_drawing.mistakes_figure(samples, ["$a$, taken for $b (99%)"] * 3)
    assert drawing.to_pixels(figure).std() > 5
    figure = classifier_drawing.mistakes_figure([torch.rand(2, 9, 9)], ["$^$, taken for $_$ (50%)"])
    assert drawing.to_pixels(figure).std() > 5
    figure = classifier_drawing.confusion_figure(torch.eye(2), ["$^$", "$\\frac$"])
    assert drawing.to_pixels(figure).std() > 5
