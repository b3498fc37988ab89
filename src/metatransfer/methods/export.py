"""Predictors and classifiers as files that run without this package: ``.onnx`` and torch's ``.pt2``.

What is exported is the code that answers, traced by ``torch.export``: no method is written twice. The file is run at
once, and its answers are compared with those of the method.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from metatransfer.batches import Inputs, Tokens, map_inputs
from metatransfer.errors import UserError
from metatransfer.methods.base import MethodModule
from metatransfer.methods.classifier import SampleClassifier
from metatransfer.methods.episodic import EpisodicModule
from metatransfer.methods.exported_file import Answers, Exported, exported
from metatransfer.methods.given import Samples, as_inputs, floating_dtype
from metatransfer.methods.predictor import Predictor
from metatransfer.nn.backbones.image_backbone import ImageBackbone


def export_predictor(predictor: Predictor[Any], path: str | Path, tolerance: float = 1e-5) -> Exported:
    """Writes an adapted predictor as a function of the queries, see :meth:`Predictor.export`."""
    task = predictor.task
    answers = _Adapted(predictor)
    names = [str(name) for name in task.classes]
    given = map_inputs(lambda part: part.cpu(), task.support_x)
    return exported(answers, {"query_x": given}, path, tolerance, names, not task.classes)


def export_module(
    module: MethodModule, path: str | Path, samples: Samples | Inputs | None = None, tolerance: float = 1e-5
) -> Exported:
    """Writes a method as a file that runs without this package.

    A classifier becomes a function ``x -> probabilities``. A few-shot method becomes a function ``(support_x,
    support_y, query_x) -> probabilities`` with any number of samples, queries and classes; methods that take gradients
    on the support set cannot be exported in this form: adapt them, and export the predictor.

    The resizing and normalisation of the network is part of the file, and so are the names of the classes. A transform
    of the data module is not.

    Args:
        module: a trained method.
        path: a file that ends in ``.onnx`` (extra ``export``) or ``.pt2``.
        samples: ``(N, *shape)`` samples, two or more, to trace and to compare with; random ones if ``None``, which the
            network must then know the shape of.
        tolerance: largest allowed difference of the answers.

    Returns:
        What was written, and how it compares; print it.

    Raises:
        UserError: the method cannot be exported, packages are missing, or the answers differ.

    Example:
        >>> print(metatransfer.export_module(metatransfer.load("best.ckpt"), "model.onnx"))  # doctest: +SKIP
    """
    if module.cannot_export:
        raise UserError(f"{type(module).__name__} cannot be exported, because {module.cannot_export}.")
    given = _random_samples(module) if samples is None else as_inputs(module, samples, "samples")
    module.check_samples(given)
    given = map_inputs(lambda part: part.cpu(), given)
    if isinstance(module, SampleClassifier):
        return exported(_Classifier(module), {"x": given}, path, tolerance, module.class_names)
    if not isinstance(module, EpisodicModule):
        raise UserError(f"{type(module).__name__} is neither a classifier nor a few-shot method: it has no answers.")
    count = len(pytree.tree_leaves(given)[0])
    labels = torch.arange(count) % min(count, module.num_outputs or 2)
    inputs: dict[str, Any] = {"support_x": given, "support_y": labels, "query_x": given}
    return exported(_Learner(module), inputs, path, tolerance, ())


# ---- functions of tensors


class _Classifier(Answers):
    def forward(self, x: Inputs) -> Tensor:
        probabilities: Tensor = self.module(x).float().softmax(-1)
        return probabilities


class _Adapted(Answers):
    """The state is a constant of the program."""

    def __init__(self, predictor: Predictor[Any]) -> None:
        super().__init__(predictor.module)
        self.state = pytree.tree_map_only(Tensor, Tensor.cpu, predictor.state)
        self.classes = len(predictor.classes)

    def forward(self, query_x: Inputs) -> Tensor:
        return self.points(self.module.predict_tasks(self.state, _one_task(query_x)), self.classes)


class _Learner(Answers):
    def forward(self, support_x: Inputs, support_y: Tensor, query_x: Inputs) -> Tensor:
        state = self.module.fit_tasks(_one_task(support_x), support_y.unsqueeze(0))
        return self.points(self.module.predict_tasks(state, _one_task(query_x)))


def _one_task(x: Inputs) -> Inputs:
    return map_inputs(lambda part: part.unsqueeze(0), x)


def _random_samples(module: MethodModule) -> Inputs:
    """Samples of the shape that the network was built for, or texts from its vocabulary."""
    generator = torch.Generator().manual_seed(0)
    backbone = getattr(module, "backbone", None)  # some methods have none
    shape = getattr(backbone, "in_shape", None)
    if isinstance(backbone, ImageBackbone):
        size = backbone.image_size or backbone.resize
        shape = (backbone.in_channels, size, size) if size else None
    if vocabulary := getattr(backbone, "vocabulary_size", None):
        ids = torch.randint(1, vocabulary, (6, 8), generator=generator)
        return Tokens(ids, torch.ones_like(ids))
    if shape is None:
        raise UserError(
            f"the network of {type(module).__name__} takes samples of any shape: pass samples=x with two or more "
            "samples to export_module, or --shape to lightning export."
        )
    return torch.rand(6, *shape, generator=generator).to(floating_dtype(module))
