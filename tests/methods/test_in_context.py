"""The in-context learner: its start at class means, its views, frozen backbones."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import messages
from contract import episode
from metatransfer import (
    Conv4,
    Episode,
    InContextModule,
    PaddedRows,
    ProtoNetModule,
    TokenAverage,
    Tokens,
    UserError,
    load_predictor,
)
from metatransfer.functional.meta.columns import columns_by_class, fit_columns, standardised


def trained(**arguments):
    """A module whose last layer is not 0."""
    torch.manual_seed(0)
    module = InContextModule(Conv4(hidden_channels=4), width=16, **arguments)
    torch.nn.init.normal_(module.readout.weight)
    return module


def test_it_starts_at_cosine_class_means():
    module = InContextModule(Conv4(hidden_channels=4), width=16, scale=7.0).eval()
    means = ProtoNetModule(module.backbone, distance="cosine", scale=7.0).eval()
    with torch.no_grad():
        torch.testing.assert_close(module(episode()), means(episode()))
        assert not torch.equal(trained().eval()(episode()), means(episode()))


def test_logits_against_one_sequence_for_each_class_and_query():
    module = trained().double().eval()
    batch = episode().map(lambda t: t.double() if t.is_floating_point() else t)
    with torch.no_grad():
        logits = module(batch)
        for task in range(2):
            support, queries = module.backbone(batch.support_x[task]), module.backbone(batch.query_x[task])
            for way in range(3):
                own = batch.support_y[task] == way
                codes = torch.stack([module.codes.weight[int(one)] for one in own])
                seen = module.reader.read(module.project(support) + codes)
                prototype = support[own].mean(0)
                for index, query in enumerate(queries):
                    answer = module.reader.answer(seen, module.project(query).unsqueeze(0))[0]
                    expected = module.readout(answer)[0] + 10 * torch.cosine_similarity(query, prototype, 0)
                    torch.testing.assert_close(logits[task, index, way], expected, rtol=1e-9, atol=1e-9)


def test_a_frozen_backbone_stays_as_it_is():
    module = trained(freeze_backbone=True).train()
    before = {name: value.clone() for name, value in module.backbone.state_dict().items()}
    assert not module.backbone.training
    assert module.reader.training
    optimizer = module.configure_optimizers()
    module.training_loss(episode())[0].backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in module.backbone.state_dict().items())
    assert all(value.grad is None for value in module.backbone.parameters())
    assert module.codes.weight.grad.abs().max() > 0


@pytest.mark.parametrize("labels", [[0] * 3, [0, 1, 1, 2, 2, 2], list(range(9))])
def test_any_ways_and_uneven_shots(labels):
    module = trained().eval()
    batch = Episode(
        torch.rand(2, len(labels), 1, 28, 28), torch.tensor([labels] * 2), torch.rand(2, 4, 1, 28, 28), None
    )
    assert module(batch).isfinite().all()
    assert module(batch).shape == (2, 4, max(labels) + 1)


def test_texts():
    module = InContextModule(TokenAverage(20, 8), width=16)
    texts = Tokens(torch.randint(1, 20, (2, 3, 6)), torch.ones(2, 3, 6, dtype=torch.long))
    assert module(Episode(texts, torch.tensor([[0, 1, 0]] * 2), texts, None)).shape == (2, 3, 2)


def test_half_precision():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = trained().eval()(episode())
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, trained().eval()(episode()), rtol=0.1, atol=0.5)


def table(seed=0, columns=5, rows=12, queries=4):
    draw = torch.Generator().manual_seed(seed)
    y = torch.arange(rows).remainder(3).unsqueeze(0)
    x = torch.randn(1, rows, columns, generator=draw).double() + y.unsqueeze(-1)
    return Episode(x, y, torch.randn(1, queries, columns, generator=draw).double(), None)


def for_tables(max_features=7):
    torch.manual_seed(0)
    module = InContextModule(PaddedRows(max_features), width=16, align=True)
    torch.nn.init.normal_(module.readout.weight)
    return module.double().eval()


def test_columns_of_a_table_against_a_loop():
    batch = table()
    x, y = batch.support_x[0], batch.support_y[0]
    x[:, 2] = 7.0  # constant
    x[0, 3] = 1e3  # far out
    columns = fit_columns(batch.support_x, batch.support_y, 3)
    found = columns_by_class(standardised(batch.support_x, columns), columns)
    for way in range(3):
        own = (y == way).double()
        z = [(x[:, j] - x[:, j].mean()) / x[:, j].std(correction=0) if j != 2 else 0 * x[:, j] for j in range(5)]
        r = [torch.corrcoef(torch.stack([z[j], own]))[0, 1] if j != 2 else torch.zeros(()).double() for j in range(5)]
        for place, j in enumerate(sorted(range(5), key=lambda j: -abs(float(r[j])))):
            z[j] = z[j].clamp(-5, 5)
            torch.testing.assert_close(found[0, way, :, place], -z[j] if r[j] < 0 else z[j])
            torch.testing.assert_close(found[0, way, :, 5 + place], z[j] * r[j])


def test_answers_depend_neither_on_units_nor_on_the_order_of_columns_nor_on_padding():
    module, batch = for_tables(), table()
    order, units = torch.tensor([3, 0, 4, 1, 2]), torch.tensor([1e3, -2.0, 0.1, 1.0, -1e-3]).double()
    other = batch.map(lambda part: (part * units + 5)[..., order] if part.is_floating_point() else part)
    wider = batch.map(lambda part: F.pad(part, (0, 2), value=3.0) if part.is_floating_point() else part)
    with torch.no_grad():
        expected = module(batch)
        torch.testing.assert_close(module(other), expected, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(module(wider), expected, rtol=1e-8, atol=1e-8)
        assert not torch.allclose(expected, module(table(seed=1)))
        renamed = batch._replace(support_y=torch.tensor([2, 0, 1])[batch.support_y])
        torch.testing.assert_close(expected, module(renamed)[..., torch.tensor([2, 0, 1])], rtol=1e-9, atol=1e-9)


def test_on_tables_it_starts_at_class_means_of_standardised_columns():
    module, batch = InContextModule(PaddedRows(7), width=16, scale=3.0, align=True).double().eval(), table()
    with torch.no_grad():
        found = module(batch)[0]
    mean, deviation = batch.support_x[0].mean(0), batch.support_x[0].std(0, correction=0)
    support, queries = ((part[0] - mean) / deviation for part in (batch.support_x, batch.query_x))
    means = torch.stack([support[batch.support_y[0] == way].mean(0) for way in range(3)])
    expected = -3.0 * (queries.unsqueeze(1) - means).square().mean(-1)
    torch.testing.assert_close(found.log_softmax(-1), expected.log_softmax(-1))


def test_a_table_is_learned_through_adapt(tmp_path):
    """With any number of columns and classes; saved, it gives the same answers."""
    module, batch = for_tables().float(), table(columns=3)
    words = [["bad", "good", "none"][label] for label in batch.support_y[0]]
    predictor = module.adapt(batch.support_x[0].numpy(), words)
    with torch.no_grad():
        expected = module(batch.map(lambda part: part.float() if part.is_floating_point() else part))[0].softmax(-1)
    queries = batch.query_x[0].numpy()
    torch.testing.assert_close(predictor.predict_proba(queries), expected)
    again = load_predictor(predictor.save(tmp_path / "table.safetensors"))
    assert torch.equal(again.predict_proba(queries), predictor.predict_proba(queries))
    with pytest.raises(UserError, match="at most 7 columns, but the rows have 8: leave columns out") as error:
        module.adapt(torch.rand(4, 8), [0, 0, 1, 1])
    messages.keep(str(error.value))
    with pytest.raises(UserError, match=r"takes rows of a table, but samples have the shape \(1, 28, 28\)"):
        module.adapt(torch.rand(4, 1, 28, 28), [0, 0, 1, 1])
    assert module.adapt(torch.rand(9, 2), list(range(9))).predict_proba(torch.rand(2, 2)).shape == (2, 9)


def test_a_table_with_one_class_or_one_row():
    assert for_tables().float().adapt(torch.rand(1, 3), ["a"]).predict(torch.rand(2, 3)) == ["a", "a"]


def test_wrong_arguments():
    with pytest.raises(UserError, match="scale must be a number above 0"):
        InContextModule(Conv4(), scale=0)
    with pytest.raises(UserError, match="divisible by heads"):
        InContextModule(Conv4(), width=30)
