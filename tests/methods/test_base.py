"""The bases: optimisers, schedulers, checkpoints, predictors."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from lightning.pytorch.cli import ReduceLROnPlateau
from lightning.pytorch.utilities.parsing import lightning_hasattr
from PIL import Image
from scipy.sparse import coo_array

from contract import episode
from metatransfer import Conv4, ProtoNetModule, UserError
from metatransfer.methods.protocol import differences, protocol_card


def module(**arguments):
    return ProtoNetModule(Conv4(hidden_channels=4), **arguments)


def test_optimizer_and_scheduler_are_what_was_given():
    made = module(
        optimizer=partial(torch.optim.SGD, lr=0.5, momentum=0.9),
        lr_scheduler=partial(torch.optim.lr_scheduler.StepLR, step_size=3),
    ).configure_optimizers()
    assert made["optimizer"].defaults["momentum"] == 0.9
    assert made["lr_scheduler"]["scheduler"].step_size == 3
    plateau = module(lr_scheduler=partial(ReduceLROnPlateau, monitor="val/loss")).configure_optimizers()
    assert plateau["lr_scheduler"]["monitor"] == "val/loss"
    assert isinstance(module().configure_optimizers(), torch.optim.Adam)


def test_frozen_parameters_get_no_optimizer_state():
    made = module()
    next(made.parameters()).requires_grad_(False)
    assert len(made.configure_optimizers().param_groups[0]["params"]) == len(list(made.parameters())) - 1
    for value in made.parameters():
        value.requires_grad_(False)
    with pytest.raises(UserError, match="no parameter to train"):
        made.configure_optimizers()


def test_hyper_parameters_are_plain_data():
    made = module(optimizer=partial(torch.optim.SGD, lr=0.5), distance="cosine")
    assert made.hparams["backbone"] == {"class_path": "metatransfer.Conv4", "init_args": {"hidden_channels": 4}}
    assert made.hparams["optimizer"] == {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5}}
    assert made.hparams["distance"] == "cosine"


def test_lightnings_instantiator_is_still_the_trusted_one():
    """Pinned: checkpoints name it, and Lightning refuses any other."""
    from lightning.pytorch.core.saving import _ALLOWED_INSTANTIATORS

    from metatransfer.arguments import INSTANTIATOR

    assert INSTANTIATOR in _ALLOWED_INSTANTIATORS


def test_protocol_differences():
    card = protocol_card(module())
    other = {**card, "method": {**card["method"], "distance": "cosine"}, "versions": {"torch": "0"}}
    assert differences(card, card) == []
    assert differences(card, other) == ["method.distance: euclidean -> cosine"]


def test_predictor_keeps_modes_of_frozen_submodules():
    made, batch = module().train(), episode(tasks=1)
    made.backbone.layers[1].eval()
    made.adapt(batch.support_x[0], batch.support_y[0]).predict(batch.query_x[0])
    assert made.training
    assert not made.backbone.layers[1].training


def test_labels_that_cannot_be_compared_are_still_labels():
    made, batch = module(), episode(tasks=1, shots=1)
    predictor = made.adapt(batch.support_x[0], ["x", 3, ("y", 1)])
    assert set(predictor.classes) == {"x", 3, ("y", 1)}
    assert set(predictor.predict(batch.query_x[0])) <= {"x", 3, ("y", 1)}


def test_numpy_in_numpy_out():
    made, batch = module(), episode(tasks=1)
    labels = np.array(["b", "a", "c"])[batch.support_y[0].numpy()]
    predicted = made.adapt(batch.support_x[0].numpy(), labels).predict(batch.query_x[0].numpy())
    assert isinstance(predicted, np.ndarray)
    assert predicted.dtype.kind == "U"


def test_a_predictor_refuses_nonsense():
    made, batch = module(), episode(tasks=1)
    predictor = made.adapt(batch.support_x[0], batch.support_y[0])
    with pytest.raises(UserError, match="samples along its first axis"):
        predictor.predict(torch.rand(28))
    with pytest.raises(UserError, match="NaN or infinity"):
        predictor.predict(torch.full((2, 1, 28, 28), torch.inf))


def test_random_state_is_in_the_checkpoint_and_comes_back():
    made = module()
    checkpoint = {"state_dict": made.state_dict()}
    made.on_save_checkpoint(checkpoint)
    expected = torch.rand(3)
    made.on_load_checkpoint(checkpoint)
    torch.set_rng_state(made._rng_state["cpu"])
    assert torch.equal(torch.rand(3), expected)


def test_labels_as_a_list_of_scalars_of_torch_or_numpy():
    made, batch = module(), episode(tasks=1)
    for labels in (list(batch.support_y[0]), list(batch.support_y[0].numpy())):
        assert made.adapt(batch.support_x[0], labels).classes == (0, 1, 2)


def test_samples_in_all_forms_give_one_answer():
    made, batch = module(), episode(tasks=1)
    x, y = batch.support_x[0], batch.support_y[0]
    expected = made.adapt(x, y).predict_proba(x)
    backwards = x.flip(0, -1).numpy()[::-1, ..., ::-1]
    assert min(backwards.strides) < 0
    read_only = x.numpy().copy()
    read_only.flags.writeable = False
    for form in (list(x), tuple(x), list(x.numpy()), backwards, list(backwards), x.numpy().astype(">f4"), read_only):
        assert torch.equal(made.adapt(form, y).predict_proba(form), expected)
    torch.testing.assert_close(made.adapt(x.tolist(), y).predict_proba(x.tolist()), expected)


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        ([torch.zeros(1, 28, 28), torch.zeros(1, 28, 27)], r"different shapes, \(1, 28, 28\) and \(1, 28, 27\)"),
        ([Image.new("L", (28, 28))] * 2, "holds PIL images, but must hold tensors: convert each"),
        (Image.new("L", (28, 28)), "holds PIL images"),
        (["a.png", "b.png"], "but is list of str"),
        (torch.eye(3).to_sparse(), r"is a sparse matrix, .* make it dense, x\.to_dense\(\)"),
        (torch.eye(3).to_sparse_csr(), "is a sparse matrix, which networks do not take"),
        (coo_array(np.eye(3)), "is a sparse matrix, which networks do not take"),
        (None, "but is NoneType"),
        ([[1.0, 2.0], [1.0]], "samples of one shape, but is list of list"),
    ],
)
def test_what_is_no_samples_is_refused(samples, words):
    made, batch = module(), episode(tasks=1)
    with pytest.raises(UserError, match=f"^support_x .*({words})"):
        made.adapt(samples, [0, 1])
    predictor = made.adapt(batch.support_x[0], batch.support_y[0])
    with pytest.raises(UserError, match=f"^x .*({words})"):
        predictor.predict(samples)


def test_half_precision_modules_adapt():
    made, batch = module().bfloat16(), episode(tasks=1)
    assert len(made.adapt(batch.support_x[0], batch.support_y[0]).predict(batch.query_x[0])) == 12


def test_the_rate_that_lightnings_finder_sets_is_used():
    made = module(optimizer=partial(torch.optim.SGD, lr=0.5))
    assert lightning_hasattr(made, "lr")  # where the finder looks
    assert made.configure_optimizers().param_groups[0]["lr"] == 0.5
    made.lr = 0.3
    assert made.configure_optimizers().param_groups[0]["lr"] == 0.3
