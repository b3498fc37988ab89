"""Relation networks: the relation of every pair, the loss, and both BatchNorm policies."""

import pytest
import torch
from torch import nn

from contract import episode
from metatransfer import MLP, Conv4, Episode, RelationNetModule, TokenAverage, UserError


def doubles(**arguments):
    return episode(**arguments).map(lambda t: t.double() if t.is_floating_point() else t)


def module(**arguments):
    return RelationNetModule(Conv4(hidden_channels=4, pools=2), channels=6, **arguments).double().eval()


def relation_of_concatenated(made, classes, query):
    """The relation module as the paper has it, on the concatenated maps of all pairs of a query."""
    pairs = torch.cat([classes, query.expand_as(classes)], 1)
    return made.relation.score(made.relation.blocks(made.relation.first(pairs)).mean((2, 3))).squeeze(1)


@pytest.mark.parametrize("pooling", ["sum", "mean"])
def test_scores_and_loss_against_a_loop_over_pairs(pooling):
    made, batch = module(pooling=pooling), doubles()
    losses = []
    with torch.no_grad():
        outputs = made(batch)
        for task in range(2):
            support, queries = (made.backbone.feature_maps(x[task]) for x in (batch.support_x, batch.query_x))
            own = [support[batch.support_y[task] == way] for way in range(3)]
            classes = torch.stack([maps.sum(0) if pooling == "sum" else maps.mean(0) for maps in own])
            for query, scores, label in zip(queries, outputs[task], batch.query_y[task], strict=True):
                expected = relation_of_concatenated(made, classes, query)
                torch.testing.assert_close(scores, expected, rtol=1e-9, atol=1e-12)
                target = torch.zeros(3).double()
                target[label] = 1
                losses.append((expected.sigmoid() - target).square().mean())
        torch.testing.assert_close(made.loss(outputs, batch.query_y), torch.stack(losses).mean())
        torch.testing.assert_close(made.task_losses(outputs, batch.query_y), torch.stack(losses).view(2, -1).mean(1))
        torch.testing.assert_close(made.support_scores(batch).values, outputs.sigmoid())


def test_transductive_statistics_are_those_of_a_network_in_training_mode():
    """As in the authors' test, which never calls ``eval()``: support, queries and pairs of each task by themselves."""
    made, batch = module(batch_norm="transductive"), doubles()
    before = {name: value.clone() for name, value in made.state_dict().items()}
    with torch.no_grad():
        outputs = made(batch)
    assert all(value.equal(before[name]) for name, value in made.state_dict().items())
    assert made.transductive
    twin = module()
    twin.load_state_dict(before)
    for layer in twin.modules():
        layer.train(isinstance(layer, nn.BatchNorm2d))
    with torch.no_grad():
        for task in range(2):
            one = batch.map(lambda part, task=task: part[task : task + 1])
            torch.testing.assert_close(outputs[task : task + 1], twin.predict_tasks(twin.fit_tasks(*one[:2]), one[2]))
        assert not torch.allclose(outputs, twin.eval()(batch))


@pytest.mark.parametrize("policy", ["running", "transductive"])
def test_one_policy_trains_as_the_other(policy):
    torch.manual_seed(0)
    made, batch = module(batch_norm=policy).train(), doubles()
    torch.manual_seed(0)
    expected = module().train().training_loss(batch)[0]
    torch.testing.assert_close(made.training_loss(batch)[0], expected)


def test_maps_of_one_pixel_and_a_task_of_one_class():
    made = RelationNetModule(Conv4(hidden_channels=4)).eval()
    x = torch.rand(1, 2, 1, 28, 28)
    assert made(Episode(x, torch.zeros(1, 2).long(), x, torch.zeros(1, 2).long())).shape == (1, 2, 1)


def test_a_backbone_without_feature_maps_is_refused():
    for backbone in (MLP(in_shape=(1, 28, 28)), TokenAverage(vocabulary_size=9)):
        with pytest.raises(UserError, match=f"{type(backbone).__name__} has no feature maps"):
            RelationNetModule(backbone)


def test_wrong_arguments():
    with pytest.raises(UserError, match="pooling must be one of sum, mean"):
        module(pooling="max")
    with pytest.raises(UserError, match="batch_norm must be one of running, transductive"):
        module(batch_norm="support")
    with pytest.raises(UserError, match="pools"):
        Conv4(pools=5)
