"""The multilinear map of features and predictions."""

import copy

import pytest
import torch

from metatransfer.errors import UserError
from metatransfer.nn import MultilinearMap


def test_the_outer_product_against_a_double_loop():
    torch.manual_seed(0)
    both = MultilinearMap(4, 3)
    f, g = torch.randn(5, 4, dtype=torch.float64), torch.rand(5, 3, dtype=torch.float64)
    found = both(f, g)
    assert found.shape == (5, both.out_features)
    for n in range(5):
        for i in range(4):
            for c in range(3):
                assert found[n, i * 3 + c] == f[n, i] * g[n, c]
    assert not list(both.parameters())
    assert not both.state_dict()


def test_the_random_map_against_its_formula():
    torch.manual_seed(0)
    both = MultilinearMap(900, 5, random_features=7).double()
    assert both.out_features == 7
    assert not list(both.parameters())
    assert set(both.state_dict()) == {"feature_matrix", "class_matrix"}
    f, g = torch.randn(3, 900, dtype=torch.float64), torch.rand(3, 5, dtype=torch.float64)
    found = both(f, g)
    for n in range(3):
        for k in range(7):
            expected = (both.feature_matrix[k] @ f[n]) * (both.class_matrix[k] @ g[n]) / 7**0.5
            torch.testing.assert_close(found[n, k], expected, rtol=1e-9, atol=1e-12)


def test_inner_products_of_the_random_map_are_those_of_the_outer_products():
    torch.manual_seed(0)
    f, g = torch.randn(2, 500, dtype=torch.float64), torch.rand(2, 9, dtype=torch.float64).softmax(-1)
    random = MultilinearMap(500, 9, random_features=200_000).double()(f, g)
    exact = (f[0] @ f[0]) * (g[0] @ g[0])
    torch.testing.assert_close(random[0] @ random[0], exact, rtol=0.05, atol=0)
    assert abs(random[0] @ random[1] - (f[0] @ f[1]) * (g[0] @ g[1])) < 0.02 * exact


@pytest.mark.parametrize(("features", "classes", "exact"), [(1024, 4, True), (1025, 4, False), (1, 4097, False)])
def test_beyond_4096_it_is_random(features, classes, exact):
    both = MultilinearMap(features, classes, random_features=11)
    assert both.out_features == (features * classes if exact else 11)
    assert (both.feature_matrix is None) == exact


def test_its_matrices_can_be_drawn_anew_and_travel_with_the_weights():
    one, two = MultilinearMap(1000, 5), MultilinearMap(1000, 5)
    assert not torch.equal(one.feature_matrix, two.feature_matrix)
    two.load_state_dict(one.state_dict())
    assert torch.equal(one.feature_matrix, two.feature_matrix)
    assert torch.equal(copy.deepcopy(one).class_matrix, one.class_matrix)
    two.reset_parameters()
    assert not torch.equal(one.class_matrix, two.class_matrix)


def test_refusals():
    with pytest.raises(UserError, match="random_features must be a number above 0, but is 0"):
        MultilinearMap(3, 2, random_features=0)
