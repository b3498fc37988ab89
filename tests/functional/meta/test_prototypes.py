"""Prototypes, scores and the nearest neighbour against double loops in numpy float64."""

import numpy as np
import pytest
import torch

from metatransfer.functional import (
    class_prototypes,
    cosine_scores,
    nearest_neighbor,
    prototype_scores,
    squared_euclidean_scores,
)

T, S, Q, W, E = 2, 7, 4, 3, 5


@pytest.fixture
def episode():
    generator = torch.Generator().manual_seed(0)
    support = torch.randn(T, S, E, generator=generator, dtype=torch.float64)
    query = torch.randn(T, Q, E, generator=generator, dtype=torch.float64)
    labels = torch.tensor([[0, 2, 2, 1, 0, 2, 2], [1, 1, 1, 0, 2, 1, 0]])  # uneven shots
    return support, labels, query


def test_prototypes_are_class_means_of_uneven_shots(episode):
    support, labels, _ = episode
    found = class_prototypes(support, labels, W).numpy()
    for t in range(T):
        for k in range(W):
            members = [support[t, i].numpy() for i in range(S) if labels[t, i] == k]
            np.testing.assert_allclose(found[t, k], np.mean(members, axis=0), rtol=1e-13)


def test_a_class_without_samples_has_prototype_zero(episode):
    support, labels, _ = episode
    found = class_prototypes(support, labels, W + 2)
    assert found.shape == (T, W + 2, E)
    assert (found[:, W:] == 0).all()
    torch.testing.assert_close(found[:, :W], class_prototypes(support, labels, W))


def test_prototypes_ignore_the_order_of_the_support(episode):
    support, labels, _ = episode
    order = torch.tensor([6, 0, 3, 2, 5, 1, 4])
    torch.testing.assert_close(
        class_prototypes(support[:, order], labels[:, order], W), class_prototypes(support, labels, W)
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_prototypes_keep_the_dtype(episode, dtype):
    support, labels, _ = episode
    assert class_prototypes(support.to(dtype), labels, W).dtype == dtype


def test_scores_equal_double_loops(episode):
    support, _, query = episode
    euclidean = squared_euclidean_scores(query, support).numpy()
    cosine = cosine_scores(query, support).numpy()
    for t in range(T):
        for i in range(Q):
            for k in range(S):
                q, c = query[t, i].numpy(), support[t, k].numpy()
                assert euclidean[t, i, k] == pytest.approx(-((q - c) ** 2).sum(), rel=1e-12)
                assert cosine[t, i, k] == pytest.approx(q @ c / np.sqrt((q @ q) * (c @ c)), rel=1e-12)


@pytest.mark.parametrize("function", [squared_euclidean_scores, cosine_scores])
def test_gradients(episode, function):
    support, labels, query = (value.clone() for value in episode)
    support.requires_grad_()
    query.requires_grad_()
    assert torch.autograd.gradcheck(lambda s, q: function(q, class_prototypes(s, labels, W)), (support, query))
    assert torch.autograd.gradgradcheck(lambda s, q: function(q, class_prototypes(s, labels, W)), (support, query))


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e4])
def test_squared_distances_keep_precision_far_from_zero(episode, offset):
    support, _, query = (value + offset for value in episode)
    support, query = support.float(), query.float()
    exact = -(query.double().unsqueeze(2) - support.double().unsqueeze(1)).square().sum(-1)
    found = squared_euclidean_scores(query, support)
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5 * (1 + 1e-3 * offset))


def test_squared_distances_do_not_depend_on_the_origin(episode):
    support, _, query = episode
    torch.testing.assert_close(
        squared_euclidean_scores(query + 100, support + 100),
        squared_euclidean_scores(query, support),
        rtol=1e-9,
        atol=0,
    )


def test_cosine_of_a_zero_vector_is_zero_and_its_gradient_finite():
    query = torch.zeros(1, 1, 3, requires_grad=True)
    prototypes = torch.ones(1, 2, 3)
    scores = cosine_scores(query, prototypes)
    assert (scores == 0).all()
    scores.sum().backward()
    assert torch.isfinite(query.grad).all()


@pytest.mark.parametrize("shape", [(3,), (1, 4, 4), (2, 3, 3)])
def test_nearest_neighbor_is_brute_force(shape):
    rng = np.random.default_rng(0)
    support, query = rng.random((5, 8, *shape), np.float32), rng.random((5, 20, *shape), np.float32)
    labels = rng.integers(0, 4, (5, 8))
    labels[0, 0] = 3
    scores = nearest_neighbor(torch.from_numpy(support), torch.from_numpy(labels), torch.from_numpy(query))
    assert scores.shape == (5, 20, 4)
    assert (scores.sum(-1) == 1).all()
    for t in range(5):
        for i in range(20):
            distances = [((query[t, i].astype(np.float64) - s) ** 2).sum() for s in support[t].astype(np.float64)]
            assert scores[t, i].argmax() == labels[t, int(np.argmin(distances))]


def test_nearest_neighbor_finds_copies_of_bright_images():
    """Images with a common background far from 0, which differ little: rounding must not choose another one."""
    generator = torch.Generator().manual_seed(0)
    support = 0.9 + 0.001 * torch.rand(3, 20, 1, 28, 28, generator=generator)
    labels = torch.arange(20).expand(3, 20)
    found = nearest_neighbor(support, labels, support).argmax(-1)
    assert (found == labels).all()


def test_nearest_neighbor_regresses_to_the_neighbours_target():
    support = torch.tensor([[[0.0], [1.0], [5.0]]])
    targets = torch.tensor([[[1.0, -1.0], [2.0, -2.0], [3.0, -3.0]]])
    found = nearest_neighbor(support, targets, torch.tensor([[[0.4], [0.6], [99.0], [-3.0]]]))
    assert found.tolist() == [[[1.0, -1.0], [2.0, -2.0], [3.0, -3.0], [1.0, -1.0]]]


@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_scores_against_equal_prototypes_are_the_distances(offset):
    prototypes = torch.full((1, 4, 2), offset)
    queries = torch.tensor([[[3.0 + offset, 4.0 + offset], [offset, offset]]])
    expected = torch.tensor([[[-25.0] * 4, [0.0] * 4]])
    torch.testing.assert_close(prototype_scores(queries, prototypes, "euclidean"), expected)
    ones = torch.ones(1, 4, 2)
    torch.testing.assert_close(prototype_scores(ones[:, :1], ones, "cosine", 7.0), torch.full((1, 1, 4), 7.0))
