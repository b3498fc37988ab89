"""ProtoNet as a Gaussian classifier: against ProtoNet, scipy, and the method's own traps."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import multivariate_normal

from contract import episode
from metatransfer import MLP, Conv4, GaussianProtoNetModule, ProtoNetModule, UserError

KINDS = ("shared", "diagonal", "class")


def made(covariance, **options):
    torch.manual_seed(0)
    return GaussianProtoNetModule(MLP((1, 28, 28), (4,)), covariance, **options).double().eval()


def double(batch):
    return batch.map(lambda t: t.double() if t.is_floating_point() else t)


@pytest.mark.parametrize("covariance", ["shared", "diagonal"])
def test_before_training_it_is_protonet(covariance):
    module, batch = made(covariance), double(episode())
    with torch.no_grad():
        module.log_variance.fill_(-(torch.tensor(2.0).double().log()))
        expected = ProtoNetModule(module.backbone).eval()(batch).log_softmax(-1)
        torch.testing.assert_close(module(batch).log_softmax(-1), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("covariance", KINDS)
def test_logits_are_the_log_densities_of_scipy(covariance):
    module, batch = made(covariance, shrinkage=2.0), double(episode())
    with torch.no_grad():
        module.log_variance.uniform_(-1, 1)
        if covariance == "shared":
            module.lower.uniform_(-1, 1)
            factor = module.lower.tril(-1) + torch.diag((-module.log_variance / 2).exp())
        logits = module(batch)
        for way in range(3):
            own = module.backbone(batch.support_x[0][batch.support_y[0] == way])
            matrix = torch.diag(module.log_variance.exp())
            if covariance == "shared":
                matrix = torch.linalg.inv(factor @ factor.T)
                matrix = (matrix + matrix.T) / 2
            elif covariance == "class":
                weight = module.log_shrinkage.exp()
                matrix = (weight * matrix + torch.diag((own - own.mean(0)).square().sum(0))) / (weight + len(own))
            normal = multivariate_normal(own.mean(0).numpy(), matrix.numpy())
            expected = torch.from_numpy(normal.logpdf(module.backbone(batch.query_x[0]).numpy()))
            torch.testing.assert_close(logits[0, :, way], expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("covariance", KINDS)
def test_what_is_learned_gets_a_gradient_and_is_reset(covariance):
    module = made(covariance, shrinkage=2.0).train()
    module.training_loss(double(episode()))[0].backward()
    own = {name: value for name, value in module.named_parameters() if not name.startswith("backbone")}
    assert set(own) == {"log_variance"} | {"shared": {"lower"}, "class": {"log_shrinkage"}}.get(covariance, set())
    for value in own.values():
        assert value.grad.abs().max() > 0
        with torch.no_grad():
            value.fill_(9)
    twin = module.untrained_twin()
    assert twin.log_variance.exp().allclose(torch.tensor(0.5).double())
    assert covariance != "shared" or (twin.lower == 0).all()
    assert covariance != "class" or twin.log_shrinkage.exp().item() == pytest.approx(2)


@pytest.mark.parametrize("covariance", KINDS)
def test_one_class_uneven_shots_and_half_precision(covariance):
    module = GaussianProtoNetModule(MLP((3,), (4,)), covariance)
    x = torch.rand(5, 3)
    assert module.adapt(x, ["a"] * 5).predict(x[:1]) == ["a"]
    assert module.adapt(x, list("aaaab")).predict_proba(x).isfinite().all()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embedded = torch.full((1, 5, 4), 300.0).half()
        state = module.fit_embeddings(embedded, torch.tensor([[0, 0, 0, 0, 1]]))
        assert module.predict_embeddings(state, -embedded).dtype == torch.float32
        assert module.predict_embeddings(state, -embedded).isfinite().all()


def test_wrong_arguments():
    with pytest.raises(UserError, match="covariance must be one of shared, diagonal, class"):
        GaussianProtoNetModule(Conv4(), covariance="full")
    with pytest.raises(UserError, match="shrinkage must be a number above 0"):
        GaussianProtoNetModule(Conv4(), shrinkage=0.0)
