"""Conjugate gradients against a dense solver."""

from __future__ import annotations

import torch

from metatransfer.functional import conjugate_gradient


def systems(tasks=3, size=6):
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(tasks, size, size, generator=generator, dtype=torch.float64)
    return root @ root.mT + torch.eye(size), torch.randn(tasks, size, generator=generator, dtype=torch.float64)


def apart(vectors):
    return {"matrix": vectors[:, :4].unflatten(1, (2, 2)), "vector": vectors[:, 4:]}


def whole(params):
    return torch.cat([params["matrix"].flatten(1), params["vector"]], 1)


def products(matrices):
    return lambda params: apart((matrices @ whole(params).unsqueeze(-1)).squeeze(-1))


def test_as_many_steps_as_numbers_solve_every_task():
    matrices, right = systems()
    found = whole(conjugate_gradient(products(matrices), apart(right), 6))
    torch.testing.assert_close(found, torch.linalg.solve(matrices, right), rtol=1e-8, atol=1e-9)


def test_solved_tasks_and_zeros_stay_as_they_are():
    matrices, right = systems()
    matrices[0], right[1] = 2 * torch.eye(6), 0
    found = whole(conjugate_gradient(products(matrices), apart(right), 12))
    torch.testing.assert_close(found, torch.linalg.solve(matrices, right), rtol=1e-8, atol=1e-9)
    assert (found[1] == 0).all()


def test_a_direction_without_curvature_ends_its_task_alone():
    matrices, right = systems()
    matrices[0] = -torch.eye(6)
    found = whole(conjugate_gradient(products(matrices), apart(right), 6))
    assert (found[0] == 0).all()
    torch.testing.assert_close(found[1:], torch.linalg.solve(matrices, right)[1:], rtol=1e-8, atol=1e-9)
