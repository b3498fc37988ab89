"""All numbers of a classifier against scikit-learn, torchmetrics and loops; and how processes are merged."""

from __future__ import annotations

import math
import os

import numpy as np
import pytest
import torch
import torch.distributed
import torch.multiprocessing
import torch.nn.functional as F
from scipy import stats
from sklearn.metrics import confusion_matrix, f1_score
from torchmetrics.classification import MulticlassCalibrationError

from metatransfer.metrics import Answers, ClassifierMetrics, reliability

CLASSES = 5


def outputs_and_targets(count=400, classes=CLASSES, seed=0):
    generator = torch.Generator().manual_seed(seed)
    outputs = 2 * torch.randn(count, classes, generator=generator, dtype=torch.float64)
    targets = torch.randint(classes, (count,), generator=generator)
    outputs[torch.arange(count), targets] += 1.5
    return outputs, targets


def measured(outputs, targets, classes=CLASSES, sizes=None):
    metrics = ClassifierMetrics(classes)
    sizes = sizes or [len(targets)]
    for x, y in zip(outputs.split(sizes), targets.split(sizes), strict=True):
        metrics.update(x, y)
    return metrics


@pytest.mark.parametrize("sizes", [[400], [1] * 400, [7, 300, 93]], ids=["whole", "one by one", "batches"])
def test_accuracy_loss_and_intervals(sizes):
    outputs, targets = outputs_and_targets()
    numbers = measured(outputs, targets, sizes=sizes).compute()
    right = (outputs.argmax(1) == targets).numpy().astype(float)
    losses = np.array([-row.log_softmax(0)[label].item() for row, label in zip(outputs, targets, strict=True)])
    for name, values in (("accuracy", right), ("loss", losses)):
        assert numbers[name].item() == pytest.approx(values.mean(), rel=1e-5)
    assert numbers["loss_ci95"].item() == pytest.approx(stats.t.ppf(0.975, 399) * losses.std(ddof=1) / 20, rel=1e-5)
    low, high = stats.binomtest(int(right.sum()), 400).proportion_ci(method="wilson")
    assert numbers["accuracy_low"].item() == pytest.approx(low, rel=1e-4)
    assert numbers["accuracy_high"].item() == pytest.approx(high, rel=1e-4)
    assert numbers["accuracy_ci95"].item() == pytest.approx((high - low) / 2, rel=1e-4)
    assert numbers["samples"] == 400
    assert all(value.shape == () and value.dtype == torch.float32 for value in numbers.values())


@pytest.mark.parametrize("classes", [CLASSES, 8, 2])
def test_macro_f1_against_scikit_learn(classes):
    """Classes that neither label nor answer has do not count, those that one of them has do."""
    outputs, targets = outputs_and_targets(60, classes)
    if classes == 8:
        outputs[:, 6:] = -100  # never answered
        targets[targets == 7] = 0  # and class 7 in no label either
        outputs[:, 0] += (targets == 0) * 1.0
        assert (targets == 6).any()
    numbers = measured(outputs, targets, classes).compute()
    expected = f1_score(targets, outputs.argmax(1), average="macro", zero_division=0)
    assert numbers["macro_f1"].item() == pytest.approx(expected, abs=1e-6)


def test_calibration_error_against_torchmetrics_and_a_loop():
    outputs, targets = outputs_and_targets(1000)
    found = measured(outputs, targets)
    error = found.compute()["calibration_error"].item()
    reference = MulticlassCalibrationError(CLASSES, n_bins=15, norm="l1")
    assert error == pytest.approx(float(reference(outputs.softmax(1).float(), targets)), abs=1e-5)
    confidence, answer = outputs.softmax(1).max(1)
    total = 0.0
    for place in range(15):
        inside = [i for i in range(1000) if place / 15 < confidence[i] <= (place + 1) / 15]
        if inside:
            right = np.mean([float(answer[i] == targets[i]) for i in inside])
            total += len(inside) / 1000 * abs(right - np.mean([float(confidence[i]) for i in inside]))
    assert error == pytest.approx(total, abs=1e-5)
    count, right, sure = reliability(found.answers())
    assert count.sum() == 1000
    assert right.sum().item() == pytest.approx(found.compute()["accuracy"].item() * 1000)
    assert sure.sum().item() == pytest.approx(confidence.sum().item(), rel=1e-5)


def test_confidences_on_the_edges_of_the_bins():
    confidence = torch.tensor([0.0, 0.1, 0.2, 0.5, 1.0])
    zeros = torch.zeros(5, dtype=torch.int64)
    count, right, sure = reliability(Answers(zeros, zeros, zeros, confidence, confidence), bins=10)
    assert count.tolist() == [2, 1, 0, 0, 1, 0, 0, 0, 0, 1]
    assert right.tolist() == count.tolist()
    assert sure.sum().item() == pytest.approx(1.8)


def test_confusion():
    outputs, targets = outputs_and_targets()
    found = measured(outputs, targets)
    expected = confusion_matrix(targets, outputs.argmax(1), labels=range(CLASSES))
    assert found.confusion().tolist() == expected.tolist()


def test_answers_come_in_the_order_of_the_split():
    outputs, targets = outputs_and_targets(50)
    order = torch.randperm(50)
    metrics = ClassifierMetrics(CLASSES)
    for rows in order.split(13):
        metrics.update(outputs[rows], targets[rows], rows)
    found = metrics.answers()
    assert found.number.tolist() == list(range(50))
    assert torch.equal(found.target, targets)
    assert torch.equal(found.prediction, outputs.argmax(1))
    torch.testing.assert_close(found.confidence, outputs.softmax(1).amax(1).float())
    torch.testing.assert_close(found.loss, F.cross_entropy(outputs, targets, reduction="none").float())
    assert measured(outputs, targets, sizes=[20, 30]).answers().number.tolist() == list(range(50))


def test_half_precision_and_graphs():
    outputs, targets = outputs_and_targets(40)
    metrics = measured(outputs.bfloat16().requires_grad_(), targets)
    expected = measured(outputs.bfloat16().float(), targets).compute()
    for name, value in metrics.compute().items():
        torch.testing.assert_close(value, expected[name])
    assert not metrics.answers().loss.requires_grad
    assert not metrics.state_dict()


def test_one_sample_says_little():
    outputs, targets = outputs_and_targets(1)
    numbers = measured(outputs, targets).compute()
    assert numbers["accuracy"] == float(outputs.argmax(1) == targets)
    assert float(numbers["accuracy_high"] - numbers["accuracy_low"]) == pytest.approx(0.793, abs=1e-3)
    assert math.isnan(numbers["loss_ci95"])
    assert not math.isnan(numbers["calibration_error"])


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_without_samples_nothing_is_a_number():
    metrics = ClassifierMetrics(CLASSES)
    numbers = metrics.compute()
    assert numbers.pop("samples") == 0
    assert all(math.isnan(value) for value in numbers.values())
    assert metrics.confusion().sum() == 0


def test_outputs_that_are_not_numbers_make_no_accuracy():
    """The largest of NaNs would be class 0, which may even be right."""
    outputs, targets = outputs_and_targets(20)
    outputs[3] = torch.nan
    targets[3] = 0
    numbers = measured(outputs, targets).compute()
    assert numbers.pop("samples") == 20
    assert all(math.isnan(value) for value in numbers.values())


def test_reset():
    outputs, targets = outputs_and_targets(30)
    metrics = measured(outputs, targets)
    metrics.compute()
    metrics.reset()
    assert not metrics.collected.update_called
    metrics.update(outputs[:4], targets[:4])
    assert metrics.answers().number.tolist() == [0, 1, 2, 3]


# ---- several processes


def test_states_are_merged():
    outputs, targets = outputs_and_targets(41)
    rows = torch.arange(41)
    parts = [ClassifierMetrics(CLASSES) for _ in range(2)]
    for rank, part in enumerate(parts):
        mine = rows[rank::2]
        part.update(outputs[mine], targets[mine], mine)
    parts[0].collected.merge_state(parts[1].collected)
    merged, whole = parts[0].compute(), measured(outputs, targets).compute()
    for name, value in whole.items():
        torch.testing.assert_close(merged[name], value)


SHARES = {"interleaved": [list(range(0, 30, 2)), list(range(1, 30, 2))], "one idle": [list(range(30)), []]}


def process(rank, folder):
    store = torch.distributed.FileStore(f"{folder}/store", 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    outputs, targets = outputs_and_targets(30)
    found = {}
    for name, shares in SHARES.items():
        metrics = ClassifierMetrics(CLASSES)
        rows = torch.tensor(shares[rank], dtype=torch.int64)
        for part in rows.split(4) if len(rows) else ():
            metrics.update(outputs[part], targets[part], part)
        found[name] = metrics.compute(), metrics.answers()._asdict(), metrics.confusion()
    torch.save(found, f"{folder}/{rank}.pt")
    os._exit(0)  # as in processes.py


def test_two_processes_give_the_numbers_of_one(tmp_path):
    """Both of them; a process that had no sample takes part."""
    # forked, so that nothing is imported again
    torch.multiprocessing.start_processes(process, (str(tmp_path),), nprocs=2, start_method="fork")
    outputs, targets = outputs_and_targets(30)
    whole = measured(outputs, targets)
    for rank in range(2):
        for numbers, answers, confusion in torch.load(tmp_path / f"{rank}.pt", weights_only=True).values():
            for name, value in whole.compute().items():
                torch.testing.assert_close(numbers[name], value)
            for name, value in whole.answers()._asdict().items():
                torch.testing.assert_close(answers[name], value, rtol=0, atol=0)
            assert torch.equal(confusion, whole.confusion())
