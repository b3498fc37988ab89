"""The result of ``module.adapt``: a method that has learned one task."""

from collections.abc import Hashable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from metatransfer.batches import Inputs, Tokens, map_inputs
from metatransfer.checks import check_finite
from metatransfer.errors import UserError
from metatransfer.functional.meta.inputs import concatenated
from metatransfer.functional.meta.replicas import replica
from metatransfer.methods.given import Labels, Samples, as_inputs, classes_of, support_set
from metatransfer.methods.outputs import Outputs, map_tensors, point_of

if TYPE_CHECKING:
    from metatransfer.methods.episodic import EpisodicModule
    from metatransfer.methods.explain import Attribution, Explanation
    from metatransfer.methods.exported_file import Exported

State = TypeVar("State")


class Predictor(Generic[State]):
    """Predictions for one task, in the labels of the caller.

    It shares the weights and the device of the module and changes neither the weights nor the mode of the module, so
    that several threads may use it. Further training of the module changes the predictions.

    Args:
        module: the method.
        support_x: the support set, as the network takes it.
        support_y: the support labels as given by the caller.
    """

    def __init__(self, module: "EpisodicModule[State]", support_x: Inputs, support_y: Labels) -> None:
        state = module.learned(support_x, support_y)
        self._set(module, LearnedTask(support_x, support_y, state, classes_of(support_y)), type(support_y))

    def _set(self, module: "EpisodicModule[State]", task: "LearnedTask", returns: type) -> None:
        self.module, self._task, self._returns = module, task, returns

    @classmethod
    def of_task(cls, module: "EpisodicModule[State]", task: "LearnedTask", returns: type) -> Self:
        """A predictor of a task that was learned before; ``returns`` is the type of the caller's labels."""
        found = cls.__new__(cls)
        found._set(module, task, returns)
        return found

    @property
    def task(self) -> "LearnedTask":
        """The support set and what the method learned from it."""
        return self._task

    @property
    def state(self) -> State:
        """What the method learned from the support set, with a task axis of size 1."""
        return self._task.state  # type: ignore[no-any-return]

    def save(self, path: str | Path) -> Path:
        """Writes everything that answers depend on to one file, see :func:`metatransfer.load_predictor`.

        Args:
            path: the file, such as ``cats.safetensors``; an existing one is replaced.

        Returns:
            The path.

        Raises:
            UserError: the labels or the state of the method cannot be written as tensors and plain values.
        """
        from metatransfer.methods.saved_predictor import save_predictor  # imports this file

        return save_predictor(self, path, self._returns)

    @property
    def classes(self) -> tuple[Any, ...]:
        """The distinct labels, sorted; the columns of :meth:`predict_proba`. Empty for regression."""
        return self._task.classes

    def export(self, path: str | Path, tolerance: float = 1e-5) -> "Exported":
        """Writes the predictor as a file that runs without this package: ``query_x -> probabilities``.

        What was learned from the support set is constant in the file. The number of queries is free. Resizing and
        normalisation of the network and the names of the classes are inside.

        Args:
            path: a file that ends in ``.onnx`` (extra ``export``) or ``.pt2``.
            tolerance: largest allowed difference from the predictor's own answers, which are compared at once.

        Returns:
            What was written, and how it compares; print it.

        Raises:
            UserError: torch cannot export the method, packages are missing, or the answers differ.
        """
        from metatransfer.methods.export import export_predictor  # imports this file

        return export_predictor(self, path, tolerance)

    def explain(self, query: Samples | Inputs, attribution: "Attribution" = "grad_cam") -> "Explanation":
        """Explains the answer to one query; it takes as long as learning the task once for each support sample.

        Args:
            query: one sample ``(*shape)``, or a batch of one; or one text.
            attribution: ``"grad_cam"`` for maps of where a convolutional network looked, or ``"integrated_gradients"``
                for the contribution of each pixel, feature or token (extra ``explain``).

        Returns:
            The influence and the distance of each support sample, and where the network looked; print it, or draw
            its ``figure()``.

        Raises:
            UserError: more than one query, a single support sample, an unknown attribution, or as :meth:`outputs`.
        """
        from metatransfer.methods.explain import explain  # imports this file

        return explain(self, query, attribution)

    def __repr__(self) -> str:
        names = ", ".join(map(repr, self.classes[:5])) + ", ..." * (len(self.classes) > 5)
        learned = f"{len(self.classes)} classes ({names})" if self.classes else "a regression"
        return f"{type(self).__name__}({type(self.module).__name__}, {learned}, {len(self._task.labels)} samples)"

    def add(self, x: Samples | Inputs, labels: Hashable | Labels) -> Self:
        """Adds samples of new or of known classes to the task.

        The network is not trained. The task is learned again from all samples: prototypes are computed anew, and
        gradient-based methods repeat their inner loop. If an error is raised, the predictor stays as it was.

        Args:
            x: ``(N, *shape)`` samples of the shape of the support set, or texts.
            labels: the label of all samples, or ``N`` labels, of the type of the support labels.

        Returns:
            The predictor itself.

        Raises:
            UserError: samples of another shape, labels of another type, or more classes than the network has outputs.

        Example:
            >>> predictor = module.adapt(images, ["cat", "cat", "dog"])  # doctest: +SKIP
            >>> predictor.add(more_images, "owl").predict(new)  # doctest: +SKIP
            ['owl', 'cat']
        """
        known = self._task
        several = isinstance(labels, list | tuple | np.ndarray | Tensor) and np.ndim(labels) > 0
        given: Any = labels if several else [labels] * len(x.ids if isinstance(x, Tokens) else x)
        samples, own = support_set(self.module, x, given)
        shapes = [part.shape[1:] for part in (known.support_x, samples) if isinstance(part, Tensor)]
        if len(shapes) == 1 or (shapes and shapes[0] != shapes[1]):
            raise UserError(f"x must hold samples of the same kind and shape as the support set of {self!r}.")
        merged = [*_listed(known.labels), *_listed(own)]
        if self._returns in (Tensor, np.ndarray) and type(merged[0]) is not type(merged[-1]):
            raise UserError(
                f"labels must be of the type of the support labels, {type(merged[0]).__name__}, but got "
                f"{type(merged[-1]).__name__}."
            )
        self._task = type(self)(self.module, concatenated(known.support_x, samples, 0), merged)._task
        return self

    def outputs(self, x: Samples | Inputs) -> Outputs:
        """Logits ``(N, C)``, regressed values ``(N, D)``, or other outputs of the method.

        Args:
            x: ``(N, *shape)`` samples of the shape of the support set, or texts.

        Returns:
            Tensors on the module's device, without the task axis; other objects, such as distributions, keep a task
            axis of size 1.

        Raises:
            UserError: samples of another shape or not finite, or outputs that are NaN.
        """
        return self._outputs(self._task, x)

    def predict_proba(self, x: Samples | Inputs) -> Tensor:
        """Class probabilities ``(N, len(classes))`` of samples ``(N, *shape)``, on the module's device; rows sum to 1.

        Raises:
            UserError: the task is a regression, or as :meth:`outputs`.
        """
        if not self.classes:
            raise UserError("the task is a regression and has no class probabilities: call predict.")
        return self._points(self._task, x).softmax(-1)

    def predict(self, x: Samples | Inputs) -> Any:  # noqa: ANN401
        """Labels of samples ``(N, *shape)``, or regressed values; of a distribution, its mean.

        Returns:
            The caller's own labels, as a tensor or an array if the support labels were one, else as a list.

        Raises:
            UserError: as :meth:`outputs`.
        """
        task = self._task
        points = self._points(task, x)
        if not task.classes:
            return points
        chosen = points.argmax(-1)
        if issubclass(self._returns, Tensor):
            return torch.as_tensor(task.classes, device=chosen.device)[chosen]
        names = [task.classes[index] for index in chosen.tolist()]
        return np.asarray(names) if issubclass(self._returns, np.ndarray) else names

    def _outputs(self, task: "LearnedTask", x: Samples | Inputs) -> Outputs:
        samples = as_inputs(self.module, x, "x")
        if isinstance(samples, Tensor) and samples.dim() < 2:
            raise UserError(f"x must hold samples along its first axis, (N, *shape); got {tuple(samples.shape)}.")
        check_finite(samples, "x", "clean the samples before asking about them")
        self.module.check_samples(samples)
        module = replica(self.module).eval()  # a copy, since other threads may use the module
        with torch.no_grad():
            outputs = module.predict_tasks(task.state, map_inputs(lambda part: part.unsqueeze(0), samples))
        outputs = map_tensors(lambda part: part.squeeze(0).float(), outputs)
        map_tensors(self._check_answer, outputs)
        return outputs[:, : len(task.classes)] if task.classes and isinstance(outputs, Tensor) else outputs

    def _points(self, task: "LearnedTask", x: Samples | Inputs) -> Tensor:
        points = point_of(self._outputs(task, x))
        points = points.squeeze(0) if points.dim() > 2 else points  # of a distribution
        points = points[:, : len(task.classes)] if task.classes else points
        self._check_answer(points.softmax(-1) if task.classes else points - points)  # infinity less infinity is NaN
        return points

    def _check_answer(self, answer: Tensor) -> Tensor:
        if answer.isnan().any():
            raise UserError(
                f"outputs of {type(self.module).__name__} are NaN or infinite, since the network or its inner loop has "
                "diverged: train with a lower learning rate, lower inner.lr, or load an earlier checkpoint."
            )
        return answer


class LearnedTask(NamedTuple):
    """What a predictor knows; replaced as a whole, since other threads may read it.

    Attributes:
        support_x: ``(S, *shape)``, or texts.
        labels: the ``S`` labels of the caller, or float targets.
        state: what the method learned, with a task axis of size 1.
        classes: the distinct labels, sorted; empty for a regression.
    """

    support_x: Inputs
    labels: Labels
    state: Any
    classes: tuple[Any, ...]


def _listed(labels: Labels) -> list[Any]:
    return labels.tolist() if isinstance(labels, Tensor | np.ndarray) else list(labels)
