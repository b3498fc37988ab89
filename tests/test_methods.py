"""One contract, every method: found by discovery, run on the method as its YAML builds it."""

from __future__ import annotations

import copy
import inspect
import re
from typing import get_args

import lightning.pytorch as pl
import pytest
import torch

from contract import WAYS, episode, methods, small, training_batch
from metatransfer import Episode, EpisodicModule, MethodModule, UserError
from metatransfer.cli import main

EPISODIC = methods(EpisodicModule)
EVERY = methods(MethodModule)


def by_name(kinds):
    return pytest.mark.parametrize("kind", kinds, ids=lambda kind: kind.__name__)


def policies(kind):
    """The BatchNorm policies that a method can be given."""
    return get_args(kind.__init__.__annotations__.get("batch_norm"))


def test_discovery_finds_the_methods():
    assert {"MAMLModule", "ProtoNetModule"} <= {kind.__name__ for kind in EVERY}


@by_name(EVERY)
def test_has_a_yaml_and_says_its_protocol(kind):
    module = small(kind)
    assert module.protocol()["name"] == kind.__name__


@by_name(EVERY)
def test_the_help_describes_every_argument(kind, capsys):
    """A base describes what its subclasses share; a line that begins with a role hides a whole docstring."""
    with pytest.raises(SystemExit):
        main(["fit", f"--model.help={kind.__name__}"])
    shown = capsys.readouterr().out
    assert "--model.optimizer" in shown or "--model.num_classes" in shown
    assert not re.findall(r"^  --model\.(\S+) [A-Z_]+\s+\((?:type|required)", shown, re.MULTILINE)


@by_name(EPISODIC)
def test_evaluation_and_adapt_leave_the_state_as_it_was(kind):
    module, batch = small(kind), episode()
    before = copy.deepcopy(module.state_dict())
    modes = [submodule.training for submodule in module.modules()]
    predictor = module.adapt(batch.support_x[0], batch.support_y[0])
    predictor.predict(batch.query_x[0])
    assert modes == [submodule.training for submodule in module.modules()]
    module.eval()
    with torch.inference_mode():
        module.validation_step(batch, 0)
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), name


@by_name(EPISODIC)
def test_query_labels_reach_nothing_but_the_metric(kind):
    module, batch = small(kind).eval(), episode()
    garbage = batch._replace(query_y=torch.full_like(batch.query_y, 12345))
    with torch.no_grad():
        assert torch.equal(module(batch), module(garbage))


def shapes(module):
    return {name: value.shape for name, value in module.state_dict().items()}


@by_name(EPISODIC)
def test_loaded_it_predicts_as_the_live_method(kind, tmp_path):
    """With settings that neither the class nor its YAML has, each of which changes the predictions."""
    taken, policy = kind.__init__.__annotations__, "support" if "support" in policies(kind) else "transductive"
    odd = {"inner": {"steps": 7, "lr": 0.07}, "batch_norm": policy}
    changes = {name: value for name, value in odd.items() if name in taken}
    module, batch = small(kind, **changes).eval(), episode()
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "live.ckpt")
    loaded = kind.load_from_checkpoint(tmp_path / "live.ckpt", weights_only=True).eval()
    with torch.no_grad():
        expected = module(batch)
        assert torch.equal(loaded(batch), expected)
        for name in changes:
            other = small(kind, **{key: value for key, value in changes.items() if key != name}).eval()
            if shapes(other) == shapes(module):
                other.load_state_dict(module.state_dict())
                assert not torch.equal(other(batch), expected), f"{name} changes nothing: its loss would not be noticed"


@by_name(EPISODIC)
def test_order_of_the_support_set_does_not_matter(kind):
    if kind.order_sensitive:
        pytest.skip("a sequence model")
    module, batch = small(kind).double().eval(), episode()
    batch = batch.map(lambda t: t.double() if t.is_floating_point() else t)
    order = torch.randperm(batch.support_y.shape[1])
    shuffled = batch._replace(support_x=batch.support_x[:, order], support_y=batch.support_y[:, order])
    with torch.no_grad():
        torch.testing.assert_close(module(batch), module(shuffled), rtol=1e-9, atol=1e-9)


@by_name(EPISODIC)
def test_renaming_classes_permutes_the_logits(kind):
    if kind.order_sensitive:
        pytest.skip("a sequence model, which learns what the codes of labels mean")
    # weights that are drawn tell the classes apart, so they are drawn next to their means
    drawn = {"variational": {"initial_std": 1e-30, "inner_kl_weight": 0.0}}
    quiet = {name: value for name, value in drawn.items() if name in kind.__init__.__annotations__}
    module, batch = small(kind, **quiet).double().eval(), episode()
    batch = batch.map(lambda t: t.double() if t.is_floating_point() else t)
    if module.num_outputs is not None:
        # the initial head tells the classes apart; equal rows make it blind to names, as the method itself must be
        with torch.no_grad():
            for value in module.head.parameters():
                value.copy_(value.mean(0, keepdim=True).expand_as(value))
    rename = torch.tensor([2, 0, 1])
    renamed = batch._replace(support_y=rename[batch.support_y])
    with torch.no_grad():
        torch.testing.assert_close(module(batch), module(renamed)[..., rename], rtol=1e-9, atol=1e-9)


@by_name(EPISODIC)
@pytest.mark.parametrize("batch_norm", [None, "transductive", "support", "running"])
def test_one_query_does_not_depend_on_the_others_unless_declared(kind, batch_norm):
    if batch_norm is not None and batch_norm not in policies(kind):
        pytest.skip("does not have this BatchNorm policy")
    module = small(kind, **({"batch_norm": batch_norm} if batch_norm else {})).double().eval()
    batch = episode().map(lambda t: t.double() if t.is_floating_point() else t)
    other = batch._replace(query_x=torch.cat([batch.query_x[:, :1], torch.rand_like(batch.query_x[:, 1:])], 1))
    with torch.no_grad():
        same = torch.allclose(module(batch)[:, 0], module(other)[:, 0], rtol=1e-9, atol=1e-9)
    assert same != module.transductive


@by_name(EPISODIC)
def test_tasks_of_a_meta_batch_do_not_touch_each_other(kind):
    module, batch = small(kind).double().eval(), episode(tasks=3)
    batch = batch.map(lambda t: t.double() if t.is_floating_point() else t)
    with torch.no_grad():
        together = module(batch)
        alone = torch.cat([module(batch.map(lambda t, i=i: t[i : i + 1])) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)


@by_name(EPISODIC)
@pytest.mark.parametrize("stage", ["train", "val"])
def test_tasks_of_uneven_size_are_averaged(kind, stage):
    """A list of tasks trains on the mean of their losses, and counts each task once."""
    if stage == "train" and kind.learns_from is not Episode:
        pytest.skip("learns from labelled batches")
    module = small(kind).double().train(stage == "train")
    batch = [
        episode(tasks=1, shots=shots, queries=queries, seed=shots).map(
            lambda t: t.double() if t.is_floating_point() else t
        )
        for shots, queries in ((1, 2), (3, 1), (2, 5))
    ]
    with torch.enable_grad() if stage == "train" else torch.no_grad():
        before = copy.deepcopy(module.state_dict())  # some remember what they saw
        torch.manual_seed(0)  # some draw mini-batches
        if stage == "val":
            module.validation_step(batch, 0)
            found = module.evaluation.metrics["val"].compute()
            losses = [module.loss(module(one), one.query_y).float() for one in batch]
            torch.testing.assert_close(found["loss"], torch.stack(losses).mean())
            assert found["episodes"] == 3
            return
        alone = [module.training_step(one, 0).detach() for one in batch]
        module.load_state_dict(before)
        torch.manual_seed(0)
        together = module.training_step(batch, 0)
    torch.testing.assert_close(together.detach(), torch.stack(alone).mean(), rtol=1e-9, atol=1e-9)
    together.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters() if p.requires_grad)


@by_name(EPISODIC)
def test_unlabelled_samples_may_come_along(kind):
    """A method that does not know them trains and answers as without them."""
    module, plain = small(kind).double(), episode().map(lambda t: t.double() if t.is_floating_point() else t)
    more = plain._replace(unlabelled_x=plain.query_x)
    losses, before = [], copy.deepcopy(module.state_dict())
    for batch in (plain, more) if kind.learns_from is Episode else ():
        torch.manual_seed(0)  # some draw mini-batches
        module.load_state_dict(before)  # some remember what they saw
        losses.append(module.train().training_step(batch, 0).detach())
    assert not losses or torch.allclose(*losses)
    module.eval()
    with torch.no_grad():
        assert module(plain).equal(module(more))


@by_name(EPISODIC)
def test_absent_classes_are_never_the_answer(kind):
    """An output layer that is larger than the task must not answer with what the task does not have."""
    module = small(kind).double().eval()
    if module.num_outputs is None:
        pytest.skip("takes any number of ways")
    batch = episode().map(lambda t: t.double() if t.is_floating_point() else t)
    keep = batch.support_y[0] != 1
    fewer = batch._replace(support_x=batch.support_x[:, keep], support_y=batch.support_y[:, keep])
    with torch.no_grad():
        outputs = module(fewer)
    assert (outputs.argmax(-1) != 1).all()
    assert (outputs.softmax(-1)[..., 1] == 0).all()
    assert outputs.softmax(-1).sum(-1).allclose(torch.ones(()).double())


@by_name(EPISODIC)
def test_adapt_gives_what_forward_gives(kind):
    module, batch = small(kind).eval(), episode(tasks=1)
    with torch.no_grad():
        expected = module(batch)[0].softmax(-1)
    words = [f"class-{int(label)}" for label in batch.support_y[0]]
    predictor = module.adapt(batch.support_x[0].numpy(), words)
    assert predictor.classes == ("class-0", "class-1", "class-2")
    torch.testing.assert_close(predictor.predict_proba(batch.query_x[0]), expected, rtol=1e-4, atol=1e-5)
    assert predictor.predict(batch.query_x[0]) == [f"class-{int(i)}" for i in expected.argmax(-1)]


@by_name(EPISODIC)
def test_adapt_answers_in_the_callers_own_labels(kind):
    module, batch = small(kind), episode(tasks=1)
    labels = batch.support_y[0] * 10 + 7
    for given in (labels, labels.numpy(), labels.tolist()):
        answer = module.adapt(batch.support_x[0], given).predict(batch.query_x[0])
        assert type(answer) is type(given)
        assert set(torch.as_tensor(answer).tolist()) <= {7, 17, 27}


@by_name(EPISODIC)
def test_adapt_refuses_in_one_sentence(kind):
    module, batch = small(kind), episode(tasks=1)
    x, y = batch.support_x[0], batch.support_y[0]
    with pytest.raises(UserError, match="6 samples, but support_y has 5"):
        module.adapt(x, y[:5])
    with pytest.raises(UserError, match="NaN or infinity"):
        module.adapt(x.clone().fill_(torch.nan), y)
    with pytest.raises(UserError, match=r"\(1, 28, 28\), but the data has \(3, 28, 28\)"):
        module.adapt(x.expand(-1, 3, -1, -1), y)
    with pytest.raises(UserError, match="at least one sample"):
        module.adapt(x[:0], y[:0])
    with pytest.raises(UserError, match=r"but the data has \(1, 20, 20\)"):
        module.adapt(x, y).predict(torch.rand(2, 1, 20, 20))
    if module.num_outputs is not None:
        with pytest.raises(UserError, match=f"6 classes, but this {kind.__name__} was built for {WAYS}"):
            module.adapt(x, list("abcdef"))


@by_name(EPISODIC)
def test_every_trainable_parameter_gets_a_finite_gradient(kind):
    module = small(kind).train()
    batch = training_batch(kind)
    loss, outputs = module.training_loss(batch)
    loss.backward()
    assert outputs.shape == (*(batch.query_y if kind.learns_from is Episode else batch.y).shape, WAYS)
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
    assert any(parameter.grad.abs().max() > 0 for parameter in module.parameters() if parameter.requires_grad)


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, id=name, marks=() if name in {"MAMLModule", "ProtoNetModule"} else pytest.mark.slow)
        for kind, name in ((kind, kind.__name__) for kind in EPISODIC)
    ],
)
def test_training_on_one_meta_batch_learns_it(kind):
    """A method that runs but does not learn fails here."""
    assert any(learns(kind, rate) for rate in (0.01, 0.003))  # which is as high as transformers take


def learns(kind, rate):
    torch.manual_seed(0)
    module, batch = small(kind).train(), training_batch(kind, queries=3)
    if kind.learns_from is Episode:
        batch = batch._replace(query_x=batch.support_x.repeat_interleave(3, 1)[:, : batch.query_y.shape[1]])
        batch = batch._replace(query_y=batch.support_y.repeat_interleave(3, 1)[:, : batch.query_y.shape[1]])
    optimizer = torch.optim.Adam(module.parameters(), lr=rate)
    losses = []
    while len(losses) < 80 and (not losses or losses[-1] >= 0.5 * losses[0]):
        loss, _ = module.training_loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[-1] < 0.5 * losses[0]


@by_name(EPISODIC)
def test_training_batches_of_the_other_kind_are_refused(kind):
    module, samples = small(kind), training_batch(next(k for k in EPISODIC if k.learns_from is not Episode))
    if kind.learns_from is Episode:
        for batch in (samples, list(samples)):
            with pytest.raises(UserError, match=f"{kind.__name__} learns from episodes, but .* labelled batches"):
                module.training_step(batch, 0)
    else:
        for batch in (episode(), [episode(), episode()]):
            with pytest.raises(UserError, match=f"{kind.__name__} learns from labelled batches .* serves episodes"):
                module.training_step(batch, 0)
    with pytest.raises(UserError, match=f"{kind.__name__} is tested on episodes"):
        module.validation_step(samples, 0)


@by_name(EVERY)
def test_untrained_twin_is_untrained_and_leaves_the_module_alone(kind):
    module = small(kind)
    with torch.no_grad():
        for value in module.parameters():
            value += 1  # "trained"
    before = copy.deepcopy(module.state_dict())
    rng = torch.get_rng_state()
    one, two = module.untrained_twin(), module.untrained_twin()
    assert torch.equal(rng, torch.get_rng_state())
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])
        assert torch.equal(one.state_dict()[name], two.state_dict()[name])
    for name, _ in module.named_parameters():
        assert (one.state_dict()[name] - before[name]).abs().max() > 0.5, name


@by_name(EVERY)
def test_constructor_is_plain(kind):
    kinds = [p.kind for p in inspect.signature(kind).parameters.values()]
    assert inspect.Parameter.VAR_KEYWORD not in kinds
    assert inspect.Parameter.VAR_POSITIONAL not in kinds
    assert re.search(r"\b\d{4}\.\d{4,5}\b", kind.__doc__), "the docstring names no arXiv id"


@by_name(EPISODIC)
def test_wrong_episodes_are_refused_before_the_network_sees_them(kind):
    module, batch = small(kind), episode()
    with pytest.raises(UserError, match="as many support labels as support samples"):
        module.validation_step(batch._replace(support_y=batch.support_y[:, :-1]), 0)
    with pytest.raises(UserError, match="same number of tasks"):
        module.validation_step(batch._replace(query_y=batch.query_y[:1]), 0)
    with pytest.raises(UserError, match="leading task axis"):
        module.validation_step(batch._replace(support_x=batch.support_x[0], support_y=batch.support_y[0]), 0)
    with pytest.raises(UserError, match="labels from -1"):
        module.validation_step(batch._replace(support_y=batch.support_y - 1), 0)
    if module.num_outputs is not None:
        with pytest.raises(UserError, match=f"labels from 1 to {WAYS}"):
            module.validation_step(batch._replace(support_y=batch.support_y + 1), 0)
