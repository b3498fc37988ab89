"""VERSA: sampled weights, their distribution, the same samples in every evaluation."""

from __future__ import annotations

import pytest
import torch

from contract import episode
from metatransfer import Conv4, Episode, ProtoNetModule, UserError, VersaModule


def trained(**arguments):
    """A module whose last layer is not 0."""
    torch.manual_seed(0)
    module = VersaModule(Conv4(hidden_channels=4), hidden=16, **arguments).double().eval()
    torch.nn.init.normal_(module.amortization[-1].weight, std=0.3)
    return module


def embeddings(samples=6):
    draw = torch.Generator().manual_seed(1)
    return torch.randn(2, samples, 4, generator=draw).double(), torch.tensor([[0, 1, 2, 0, 1, 2]] * 2)


def test_probabilities_against_a_loop_over_samples():
    module, (support, labels) = trained(), embeddings()
    queries = embeddings(5)[0]
    with torch.no_grad():
        state = module.fit_embeddings(support, labels)
        outputs = module.predict_embeddings(state, queries)
        for task in range(2):
            for index, query in enumerate(queries[task]):
                each = [(sample[:, :-1] @ query + sample[:, -1]).softmax(0) for sample in state[task]]
                torch.testing.assert_close(outputs[task, index].exp(), sum(each) / 10, rtol=1e-9, atol=1e-12)


def test_weights_have_the_predicted_distribution():
    module, (support, labels) = trained(num_samples=20000), embeddings()
    for training in (True, False):
        with torch.no_grad():
            mean, deviation = module.train(training).weight_distribution(support, labels)
            sampled = (module.fit_embeddings(support, labels) - mean.unsqueeze(1)) / deviation.unsqueeze(1)
        assert sampled.mean(1).abs().max() < 0.04
        assert (sampled.std(1) - 1).abs().max() < 0.04
        one, two = sampled[0, :, 0], sampled[0, :, 1]
        assert (one * two).mean(0).abs().max() < 0.04, "classes are independent"


def test_the_mean_is_a_correction_of_distances_to_class_means():
    module = VersaModule(Conv4(hidden_channels=4)).double().eval()
    torch.nn.init.constant_(module.amortization[-1].bias[5:], -60)  # no variance
    means = ProtoNetModule(module.backbone).double().eval()
    batch = episode().map(lambda t: t.double() if t.is_floating_point() else t)
    with torch.no_grad():
        torch.testing.assert_close(module(batch), (means(batch) / 2).log_softmax(-1))  # 4 features


def test_evaluation_repeats_its_samples_and_training_does_not():
    module, (support, labels) = trained(), embeddings()
    state = torch.get_rng_state()
    assert torch.equal(module.fit_embeddings(support, labels), module.fit_embeddings(support, labels))
    assert torch.equal(state, torch.get_rng_state())
    module.train()
    assert not torch.equal(module.fit_embeddings(support, labels), module.fit_embeddings(support, labels))


@pytest.mark.parametrize("labels", [[0] * 3, [0, 1, 1, 2, 2, 2], list(range(9))])
def test_any_ways_and_uneven_shots(labels):
    x, y = torch.rand(2, len(labels), 1, 28, 28), torch.tensor([labels] * 2)
    outputs = trained().float()(Episode(x, y, x, None))
    torch.testing.assert_close(outputs.exp().sum(-1), torch.ones(2, len(labels)))


def test_half_precision():
    module = trained().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = module(episode())
    assert outputs.dtype == torch.float32
    torch.testing.assert_close(outputs, module(episode()), rtol=0.1, atol=0.1)


def test_wrong_arguments():
    with pytest.raises(UserError, match="num_samples"):
        VersaModule(Conv4(), num_samples=0)
