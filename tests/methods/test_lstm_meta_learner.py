"""The LSTM meta-learner: gates and gradients against an explicit loop over weights in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from test_maml import double, sinusoids
from torch.func import functional_call

from contract import episode
from metatransfer import MLP, Conv4, LSTMMetaLearnerModule, MAMLModule, UserError
from metatransfer.functional.meta.gradients import gradient_features
from metatransfer.methods.options import Execution, InnerLoop


def vector(params):
    return torch.cat([value.flatten() for value in params])


@pytest.mark.parametrize("batching", ["loop", "vmap"])
def test_the_loss_and_all_gradients_are_those_of_torchs_lstm_cell_and_written_out_gates(batching):
    module = LSTMMetaLearnerModule(
        MLP((4,), (3,)), 3, inner=InnerLoop(steps=3, lr=0.1), hidden_size=5, execution=Execution(batching=batching)
    )
    module, plain = module.double().train(), double(episode())
    few = [x.flatten(2)[..., 390:394] for x in (plain.support_x, plain.query_x)]
    batch = plain._replace(support_x=few[0], query_x=few[1])
    rule = module.rule
    with torch.no_grad():
        for gate in rule.gates:
            gate.weight.normal_()
    cell = torch.nn.LSTMCell(4, 5).double()
    params = {name: value.detach().clone().requires_grad_() for name, value in module.named_parameters()}
    losses = []
    for support_x, support_y, query_x, query_y in zip(*batch[:4], strict=True):
        names = [name for name, _ in module.network.named_parameters()]
        weights = [params[name] for name in names]
        state = None
        rate = torch.full_like(vector(weights), 0.1)
        forget = torch.full_like(rate, 0.99)
        for _ in range(3):
            point = [value.detach().requires_grad_() for value in weights]
            loss = F.cross_entropy(
                functional_call(module.network, dict(zip(names, point, strict=True)), (support_x,)), support_y
            )
            gradient, loss = vector(torch.autograd.grad(loss, point)), loss.detach()
            seen = torch.cat([gradient_features(gradient), gradient_features(loss).expand(len(gradient), 2)], 1)
            # torch orders the gates of an LSTM as input, forget, cell, output
            order = [torch.arange(5) + 5 * place for place in (0, 1, 3, 2)]
            kernel, bias = (params[f"rule.cell.{name}"][torch.cat(order)] for name in ("weight", "bias"))
            own = {
                "weight_ih": kernel[:, :4], "weight_hh": kernel[:, 4:], "bias_ih": bias,
                "bias_hh": torch.zeros_like(bias),
            }  # fmt: skip
            state = functional_call(cell, own, (seen, state))
            gates = []
            for place, last in enumerate((rate, forget)):
                above = torch.cat([state[0], vector(weights).unsqueeze(1), last.unsqueeze(1)], 1)
                logits = above @ params[f"rule.gates.{place}.weight"].T + params[f"rule.gates.{place}.bias"]
                gates.append(torch.sigmoid(logits.squeeze(1)))
            rate, forget = gates
            moved = forget * vector(weights) - rate * gradient
            weights = [
                part.view(value.shape)
                for part, value in zip(moved.split([v.numel() for v in weights]), weights, strict=True)
            ]
        outputs = functional_call(module.network, dict(zip(names, weights, strict=True)), (query_x,))
        losses.append(F.cross_entropy(outputs, query_y))
    expected = torch.stack(losses).mean()
    loss, _ = module.training_loss(batch)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-9)
    loss.backward()
    wanted = torch.autograd.grad(expected, list(params.values()))
    for value, gradient in zip(module.parameters(), wanted, strict=True):
        torch.testing.assert_close(value.grad, gradient, rtol=1e-5, atol=1e-8)


def test_it_starts_as_gradient_descent_with_decay():
    ours = LSTMMetaLearnerModule(Conv4(hidden_channels=4), 3, inner=InnerLoop(steps=1, lr=0.1), forget=1 - 1e-6)
    with torch.no_grad():
        for gate in ours.rule.gates:
            gate.weight.zero_()
    theirs = MAMLModule(Conv4(hidden_channels=4), 3, inner=InnerLoop(steps=1, lr=0.1), batch_norm="support")
    theirs.load_state_dict({n: v for n, v in ours.state_dict().items() if not n.startswith("rule")})
    torch.testing.assert_close(ours.eval()(episode()), theirs.eval()(episode()), rtol=1e-3, atol=1e-4)


def test_batch_norm_leaks_nothing_between_queries_tasks_and_calls():
    module, batch = LSTMMetaLearnerModule(Conv4(hidden_channels=4), 3).double().eval(), double(episode())
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with torch.no_grad():
        all_at_once = module(batch)
        alone = module(batch.map(lambda t: t[1:])._replace(query_x=batch.query_x[1:, :1]))
    torch.testing.assert_close(alone[0, 0], all_at_once[1, 0], rtol=1e-9, atol=1e-9)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_regression_trains_every_weight():
    module, batch = LSTMMetaLearnerModule(MLP((1,), (8,)), 1, inner=InnerLoop(steps=2, lr=0.01)), sinusoids(3, 5, 0)
    module.train().training_loss(batch)[0].backward()
    assert all(value.grad.abs().max() > 0 for value in module.parameters())


def test_the_predictor_keeps_no_state_of_the_lstm():
    batch = episode()
    assert LSTMMetaLearnerModule(Conv4(hidden_channels=4), 3).fit_tasks(*batch[:2]).memory == ()


def test_gates_are_reset():
    module = LSTMMetaLearnerModule(MLP((4,), (8,)), 3, inner=InnerLoop(steps=2, lr=0.2), forget=0.9)
    with torch.no_grad():
        for value in module.parameters():
            value.fill_(3)
    rate, forget = (gate.bias.sigmoid().item() for gate in module.untrained_twin().rule.gates)
    assert rate == pytest.approx(0.2)
    assert forget == pytest.approx(0.9)


def test_wrong_arguments():
    with pytest.raises(UserError, match="forget is the initial value of a gate and must be between 0 and 1"):
        LSTMMetaLearnerModule(Conv4(), 3, forget=1.0)
    with pytest.raises(UserError, match=r"inner\.lr is the initial value of a gate"):
        LSTMMetaLearnerModule(Conv4(), 3, inner=InnerLoop(steps=1, lr=2.0))
    with pytest.raises(UserError, match="hidden_size must be a whole number"):
        LSTMMetaLearnerModule(Conv4(), 3, hidden_size=0)
