"""Classifiers of samples, fitted to every support set."""

from __future__ import annotations

import copy

import torch

from metatransfer import MLP, FineTuneModule, FrozenFeaturesModule
from metatransfer.batches import Episode
from metatransfer.experiments.per_task import per_task
from metatransfer.experiments.units import class_means


def episode(tasks=2, ways=3, shots=4, noise=0.3):
    """Tasks whose classes are separate clouds."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(tasks, ways, 1, 6, generator=generator) * 2
    drawn = lambda: centres + noise * torch.randn(tasks, ways, shots, 6, generator=generator)  # noqa: E731
    labels = torch.arange(ways).repeat_interleave(shots).expand(tasks, -1)
    return Episode(drawn().flatten(1, 2), labels, drawn().flatten(1, 2), labels)


def network():
    torch.manual_seed(0)
    return MLP([6], hidden=(16,)).eval()


def test_frozen_features_are_class_means():
    module, task = per_task(FrozenFeaturesModule(network(), num_classes=3), 0).eval(), episode()
    with torch.inference_mode():
        found = module(task)
        support, query = network()(task.support_x.flatten(0, 1)), network()(task.query_x.flatten(0, 1))
        baseline = class_means(network(), None)(task)
    support, query = support.view(2, 3, 4, -1), query.view(2, 12, -1)  # episode() orders its samples by class
    expected = torch.cosine_similarity(query[:, :, None], support.mean(2)[:, None], dim=-1)
    torch.testing.assert_close(found / 10, expected)  # the scale of NearestClassMean
    torch.testing.assert_close(baseline, expected)  # of the comparison, which it must not differ from


def test_fine_tuning_learns_each_task_and_leaves_the_module_as_it_was():
    module = per_task(FineTuneModule(network(), num_classes=3, optimizer=lambda p: torch.optim.Adam(p, lr=0.05)), 60)
    module.eval()
    before, task = copy.deepcopy(module.state_dict()), episode()
    with torch.inference_mode():  # as Lightning's test
        predicted = module(task).argmax(-1)
        again = module(task).argmax(-1)
    assert (predicted == task.query_y).float().mean() > 0.9
    assert torch.equal(predicted, again)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    none = per_task(module.learner, 0).eval()(task).argmax(-1)
    assert (none == task.query_y).float().mean() < 0.8


def test_the_head_is_drawn_with_the_seed_of_the_run():
    learner, task = FineTuneModule(network(), num_classes=3), episode()
    found = []
    for learner.run_seed in (None, 0, 1):
        found.append(per_task(learner, 0).eval()(task))
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[1], found[2])
