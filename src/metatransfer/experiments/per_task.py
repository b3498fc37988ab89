"""Transfer learning on few-shot tasks: a classifier is fitted or fine-tuned on every support set anew."""

from typing import Any

import torch
from torch import Tensor, nn

from metatransfer.adapters import Labelled
from metatransfer.batches import Inputs, LabelledBatch, map_inputs
from metatransfer.functional.meta.replicas import deep_copy
from metatransfer.methods.classifier import SampleClassifier
from metatransfer.methods.episodic import EpisodicModule
from metatransfer.methods.fitted import FittedFeaturesModule
from metatransfer.methods.twins import detached


def per_task(learner: SampleClassifier, steps: int) -> EpisodicModule[list[Any]]:
    """A few-shot method that fits a classifier of samples to every support set.

    A classifier of frozen features is fitted to the support set. Any other is trained on it with its own loss, as many
    steps as its configuration has epochs, since a support set fits in one batch; the optimiser is its own, without a
    scheduler. Its network starts from the weights that it has for each task, its head from new ones, drawn with the
    seed of the run.

    Args:
        learner: the classifier, built for the number of ways.
        steps: optimiser steps on each support set.
    """
    return _PerTask(learner, steps)


class _PerTask(EpisodicModule[list[Any]]):
    """See :func:`per_task`; private, since it is no method that a configuration can name."""

    def __init__(self, learner: SampleClassifier, steps: int) -> None:
        super().__init__()
        self.learner, self.steps, self.run_seed = learner, steps, learner.run_seed
        # in a list, so that it is no part of the module: a Trainer that knows it could not be copied
        self._start = [detached(learner)]
        self.num_outputs = learner.num_classes
        self.backbone = getattr(learner, "backbone", None)

    def fit_tasks(self, support_x: Inputs, support_y: Tensor) -> list[Any]:
        """One predictor for each task."""
        return [
            self._fitted(map_inputs(lambda x, place=place: x[place], support_x), labels)  # type: ignore[misc]
            for place, labels in enumerate(support_y)
        ]

    def _fitted(self, x: Inputs, labels: Tensor) -> Any:  # noqa: ANN401
        learner = self.learner
        if isinstance(learner, FittedFeaturesModule):
            classifier = deep_copy(learner.classifier)
            classifier.fit(Labelled(learner.backbone(x), labels), learner.num_classes)
            return nn.Sequential(learner.backbone, classifier)
        with torch.inference_mode(False), torch.enable_grad():
            twin: Any = self._start[0].restarted(self.run_seed or 0).to(labels.device)
            batch = LabelledBatch(map_inputs(Tensor.clone, x), labels.clone())
            groups = twin.parameter_groups() if hasattr(twin, "parameter_groups") else list(twin.parameters())
            optimizer = twin.optimizer(groups)
            twin.train()
            for step in range(self.steps):
                if hasattr(twin, "enter_epoch"):
                    twin.enter_epoch(step)
                optimizer.zero_grad()
                twin.training_loss(batch)[0].backward()
                optimizer.step()
        return twin.eval()

    def predict_tasks(self, state: list[Any], query_x: Inputs) -> Tensor:
        """Logits of the queries."""
        return torch.stack(
            [one(map_inputs(lambda x, place=place: x[place], query_x)) for place, one in enumerate(state)]  # type: ignore[misc]
        )

    def protocol(self) -> dict[str, Any]:
        """That of the classifier, and the steps on each task."""
        return super().protocol() | self.learner.protocol() | {"steps_on_support": self.steps}
