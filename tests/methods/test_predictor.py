"""Predictors: what they are called, how they grow, and that they never answer with NaN."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from contract import episode
from metatransfer import MLP, Backbone, Episode, EpisodicModule, MAMLModule, ProtoNetModule, Tokens, UserError
from metatransfer.functional import episode_scores
from metatransfer.methods.options import InnerLoop


def three(seed=0):
    """Six samples of three classes that are easy to tell apart."""
    torch.manual_seed(seed)
    return torch.eye(3).repeat(2, 1) * 5 + torch.rand(6, 3) * 0.1, ["cat", "dog", "owl"] * 2


def network():
    torch.manual_seed(0)
    return MLP((3,), (16,))


def test_repr():
    x, y = three()
    assert repr(ProtoNetModule(network()).adapt(x, y)) == (
        "Predictor(ProtoNetModule, 3 classes ('cat', 'dog', 'owl'), 6 samples)"
    )
    many = ProtoNetModule(network()).adapt(x, list(range(6)))
    assert repr(many) == "Predictor(ProtoNetModule, 6 classes (0, 1, 2, 3, 4, ...), 6 samples)"
    values = MAMLModule(network(), 1).adapt(x, torch.rand(6))
    assert repr(values) == "Predictor(MAMLModule, a regression, 6 samples)"


@pytest.mark.parametrize("method", ["metric", "gradient"])
def test_a_class_that_is_added_later_is_as_if_it_had_been_there(method):
    x, y = three()
    inner = InnerLoop(steps=3, lr=0.1)
    module = ProtoNetModule(network()) if method == "metric" else MAMLModule(network(), 3, inner=inner)
    late = [label == "owl" for label in y]
    early = [not flag for flag in late]
    names = [label for label in y if label != "owl"]
    predictor = module.adapt(x[early], names)
    assert predictor.add(x[late], "owl") is predictor
    assert predictor.classes == ("cat", "dog", "owl")
    order = [*np.flatnonzero(early), *np.flatnonzero(late)]
    whole = module.adapt(x[order], [y[place] for place in order])
    assert torch.equal(predictor.outputs(x), whole.outputs(x))
    assert predictor.predict(x) == whole.predict(x)


def test_more_samples_of_a_known_class_and_labels_of_their_own():
    x, y = three()
    predictor = ProtoNetModule(network()).adapt(x[:3], torch.tensor([4, 5, 6]))
    predictor.add(x[3:4], 4).add(x[4:], torch.tensor([5, 6]))
    assert predictor.predict(x).tolist() == [4, 5, 6, 4, 5, 6]
    words = ProtoNetModule(network()).adapt(x[:3], np.array(y[:3])).add(x[3:], np.array(["a", "longer name", "b"]))
    assert "longer name" in words.classes
    values = MAMLModule(network(), 1).adapt(x[:3], [0.5, 1.0, 1.5]).add(x[3:], [2.0, 2.5, 3.0])
    assert values.predict(x).shape == (6, 1)


class Count(Backbone):
    out_features = 4

    def forward(self, x):
        return nn.functional.one_hot(x.ids, 4).float().mean(1)


def test_texts_of_another_length_are_added():
    def texts(rows):
        return Tokens(torch.tensor(rows), torch.ones(len(rows), len(rows[0]), dtype=torch.int64))

    predictor = ProtoNetModule(Count()).adapt(texts([[1, 1], [2, 2]]), ["one", "two"])
    predictor.add(texts([[3, 3, 3], [3, 3, 3]]), "three")
    assert predictor.predict(texts([[3, 3], [1, 1]])) == ["three", "one"]


def test_what_cannot_be_added_is_an_error_and_changes_nothing():
    x, y = three()
    predictor = MAMLModule(network(), 3).adapt(x, y)
    before = predictor.outputs(x)
    with pytest.raises(UserError, match="has 4 classes, but this MAMLModule was built for 3"):
        predictor.add(x, "eel")
    with pytest.raises(UserError, match="x must hold samples of the same kind and shape as the support set"):
        ProtoNetModule(Loose()).adapt(x, y).add(torch.rand(2, 4), "cat")
    with pytest.raises(UserError, match="labels must be of the type of the support labels, int, but got str"):
        ProtoNetModule(network()).adapt(x, torch.arange(6)).add(x, "cat")
    assert torch.equal(predictor.outputs(x), before)
    assert predictor.classes == ("cat", "dog", "owl")


class Loose(Backbone):
    out_features = 1

    def forward(self, x):
        return x.mean(1, keepdim=True)


# ---- NaN


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("method", ["metric", "gradient", "regression"])
def test_a_prediction_is_never_nan(method, value):
    x, y = three()
    made = {
        "metric": lambda: ProtoNetModule(network()),
        "gradient": lambda: MAMLModule(network(), 3, inner=InnerLoop(steps=0, lr=0.1)),
        "regression": lambda: MAMLModule(network(), 1, inner=InnerLoop(steps=0, lr=0.1)),
    }
    module = made[method]()
    predictor = module.adapt(x, torch.rand(6) if method == "regression" else y)
    with torch.no_grad():
        next(iter(module.parameters())).fill_(value)
    asked = [predictor.predict] if method == "regression" else [predictor.predict, predictor.predict_proba]
    for ask in asked:
        with pytest.raises(UserError, match=r"are NaN or infinite, since .*lower inner\.lr"):
            ask(x)


def test_an_inner_loop_that_diverges_is_an_error_of_the_prediction():
    x, y = three()
    predictor = MAMLModule(network(), 3, inner=InnerLoop(steps=5, lr=1e30)).adapt(x, y)
    with pytest.raises(UserError, match="inner loop has diverged"):
        predictor.predict_proba(x)


def test_the_score_of_a_task_with_nan_is_nan():
    outputs = torch.tensor([[[1.0, 0.0]], [[torch.nan, 0.0]]])
    assert episode_scores(outputs, torch.zeros(2, 1, dtype=torch.int64))[0] == 1
    assert episode_scores(outputs, torch.zeros(2, 1, dtype=torch.int64))[1].isnan()


# ---- training_loss of a user


class LossAlone(ProtoNetModule):
    def training_loss(self, batch):
        return super().training_loss(batch)[0]


class NoScalar(ProtoNetModule):
    def training_loss(self, batch):
        _, outputs = super().training_loss(batch)
        return outputs.sum(-1), outputs


@pytest.mark.parametrize(
    ("kind", "words"), [(LossAlone, r"returned a tensor of shape \(\)"), (NoScalar, "returned tuple")]
)
def test_a_training_loss_that_is_no_pair_is_an_error(kind, words):
    batch = episode()
    module: EpisodicModule = kind(Loose())
    flat = Episode(batch.support_x.flatten(2), batch.support_y, batch.query_x.flatten(2), batch.query_y)
    with pytest.raises(UserError, match=rf"training_loss of {kind.__name__} must return the pair.*{words}"):
        module.training_step(flat, 0)
