"""Why a predictor answered as it did: influence and nearness of support samples, and where the network looked."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from metatransfer.batches import Inputs, Tokens, map_inputs
from metatransfer.checks import check_choice
from metatransfer.drawing.explanations import explanation_figure
from metatransfer.errors import UserError
from metatransfer.functional.meta.replicas import replica
from metatransfer.methods.given import Samples, as_inputs
from metatransfer.methods.integrated_gradients import Attributions, integrated_gradients
from metatransfer.methods.layer_features import watched
from metatransfer.methods.outputs import point_of
from metatransfer.methods.predictor import Predictor

Attribution = Literal["grad_cam", "integrated_gradients"]


@dataclass(frozen=True)
class Explanation:
    r"""Why a predictor answered as it did for one query.

    Attributes:
        answer: the predicted label; for a regression, the values as a tensor.
        probabilities: ``(C,)`` of all classes; ``None`` for a regression.
        classes: the ``C`` labels.
        labels: labels or targets of the ``S`` support samples.
        influence: ``(S,)`` the exact influence :math:`\log p(y\mid S) - \log p(y\mid S\setminus i)` of each support
            sample on the log-probability of the answer, by learning the task again without it: positive samples speak
            for the answer. Infinite for the only sample of the predicted class. For a regression, the change of the
            value, summed over its components.
        distances: ``(S,)`` Euclidean distances of the support samples from the query in the features of the adapted
            network; ``None`` if the method has no ``backbone``.
        looked_before: ``(H, W)`` in [0, 1], where the network looked before it adapted (Grad-CAM, Selvaraju et al.
            2017, 1610.02391); ``None`` without feature maps, or if the network does not change.
        looked_after: the same for the adapted network.
        attributions: integrated gradients of the answer's log-probability, or value, with respect to the query, in its
            shape; ``(L,)`` of the tokens of a text. The path starts at the mean of the support samples, of texts at
            embeddings of 0. ``None`` unless asked for.
        attribution_gap: how far their sum is from the difference of the answers at both ends of the path.
        query_x: the query ``(*shape)``.
        support_x: the support set ``(S, *shape)``.
    """

    answer: Any
    probabilities: Tensor | None
    classes: tuple[Any, ...]
    labels: list[Any]
    influence: Tensor
    distances: Tensor | None
    looked_before: Tensor | None
    looked_after: Tensor | None
    query_x: Inputs
    support_x: Inputs
    attributions: Tensor | None = None
    attribution_gap: float | None = None

    def __str__(self) -> str:
        """One line for each class in words, or one for a regression."""
        if self.probabilities is None:
            places = list(range(len(self.labels)))
            return f"value {self.answer.tolist()}: {self._words(places)}"
        order = self.probabilities.argsort(descending=True).tolist()
        return "\n".join(
            f"{self.classes[place]}: {100 * float(self.probabilities[place]):.1f} %; "
            + self._words([index for index, label in enumerate(self.labels) if label == self.classes[place]])
            for place in order
        )

    def _words(self, places: list[int]) -> str:
        strongest = max(places, key=lambda place: abs(float(self.influence[place])))
        value = float(self.influence[strongest])
        text = f"its sample {strongest} has the largest influence, {value:+.2f}"
        if value == float("inf"):
            text = f"sample {strongest} is its only one"
        if self.distances is not None:
            nearest = min(places, key=self.distances.tolist().__getitem__)
            text += f"; its nearest is sample {nearest}, at distance {float(self.distances[nearest]):.2f}"
        return text

    def figure(self) -> Figure:
        """The query, where the network looked, and the support samples with the largest influence."""
        if isinstance(self.query_x, Tokens) or isinstance(self.support_x, Tokens):
            shown, support = torch.zeros(1), torch.zeros(len(self.labels), 1)  # texts are not drawn
        else:
            shown, support = self.query_x, self.support_x
        looks = {"looked before": self.looked_before, "looked after": self.looked_after}
        title = f"answer: {self.answer}" if self.probabilities is not None else f"value: {self.answer.tolist()}"
        names = [str(label) for label in self.labels]
        found = {name: look for name, look in looks.items() if look is not None}
        return explanation_figure(shown, support, names, self.influence, found, title, self.attributions)


def explain(predictor: Predictor[Any], query: Samples | Inputs, attribution: Attribution) -> Explanation:
    """Explains the answer to one query, see :meth:`Predictor.explain`."""
    check_choice("attribution", attribution, get_args(Attribution))
    module, task = predictor.module, predictor.task
    given = query if isinstance(query, Tokens) else as_inputs(module, query, "query")
    if isinstance(given, Tensor) and isinstance(task.support_x, Tensor) and given.dim() == task.support_x.dim() - 1:
        given = given.unsqueeze(0)
    if len(given.ids if isinstance(given, Tokens) else given) != 1:
        raise UserError("explain takes one query: give one sample, x[i].")
    answer = predictor.predict(given)[0]
    probabilities = predictor.predict_proba(given)[0].cpu() if task.classes else None
    labels = task.labels.tolist() if hasattr(task.labels, "tolist") else list(task.labels)
    before, after = _looks(predictor, given) if attribution == "grad_cam" else (None, None)
    found = _integrated(predictor, given) if attribution == "integrated_gradients" else (None, None)
    alone = map_inputs(lambda part: part.cpu(), given)
    return Explanation(
        answer, probabilities, task.classes, labels, influences(predictor, given), _distances(predictor, given), before,
        after, map_inputs(lambda part: part[0], alone), map_inputs(lambda part: part.cpu(), task.support_x), *found,
    )  # fmt: skip


def influences(predictor: Predictor[Any], query: Inputs) -> Tensor:
    """The influence ``(S,)`` of each support sample on the answer to one query, by learning without it."""
    task = predictor.task
    place = int(predictor._points(predictor.task, query).argmax()) if task.classes else 0
    answer = task.classes[place] if task.classes else None
    whole, count = _score(predictor, query, answer), len(task.labels)
    if count < 2:
        raise UserError("explain leaves out one support sample at a time, but there is only one: adapt to two or more.")
    found = []
    for left in range(count):
        kept = [index for index in range(count) if index != left]
        labels: Any = task.labels
        rest = [labels[index] for index in kept] if isinstance(labels, list | tuple) else labels[kept]
        fewer = type(predictor)(predictor.module, map_inputs(lambda part, kept=kept: part[kept], task.support_x), rest)  # type: ignore[misc]
        found.append(whole - _score(fewer, query, answer))
    return torch.stack(found)


def _score(predictor: Predictor[Any], query: Inputs, answer: object) -> Tensor:
    """The log-probability of a class, or the value."""
    if not predictor.classes:
        return predictor._points(predictor.task, query).double().sum().cpu()
    if answer not in predictor.classes:
        return torch.tensor(-torch.inf, dtype=torch.float64)
    logits = predictor._points(predictor.task, query)[0].double()
    return logits.log_softmax(-1)[predictor.classes.index(answer)].cpu()


# ---- the features


def _distances(predictor: Predictor[Any], query: Inputs) -> Tensor | None:
    if not isinstance(getattr(predictor.module, "backbone", None), nn.Module):
        return None
    near, support = (_features(predictor, x) for x in (query, predictor.task.support_x))
    distances: Tensor = (support - near).norm(dim=1).cpu()
    return distances


@torch.no_grad()
def _features(predictor: Predictor[Any], x: Inputs) -> Tensor:
    """Features ``(N, E)`` of samples in the adapted network, caught where the backbone returns them."""
    found: list[Tensor] = []
    _run(predictor, predictor.state, x, {"": lambda output: found.append(output)})
    count = len(x.ids if isinstance(x, Tokens) else x)
    if not found:  # the method takes feature maps, which the backbone computes by another function
        backbone: Any = replica(predictor.module).eval().backbone
        found = [backbone(x)]
    return found[-1].flatten(1)[-count:].float()  # the support set may stand before them


def _run(predictor: Predictor[Any], state: Any, x: Inputs, hooks: dict[str, Callable[[Tensor], Any]]) -> Tensor:  # noqa: ANN401
    """Outputs for samples, with functions that see, and may replace, the outputs of parts of the backbone."""
    queries = map_inputs(lambda part: part.unsqueeze(0), x)
    named = {f"backbone.{name}".rstrip("."): hook for name, hook in hooks.items()}
    outputs = watched(predictor.module, named, lambda module: module.predict_tasks(state, queries))
    return point_of(outputs).squeeze(0)


# ---- where the network looked


def _looks(predictor: Predictor[Any], query: Inputs) -> tuple[Tensor | None, Tensor | None]:
    """Grad-CAM before and after adaptation."""
    name = _last_map(predictor, query)
    if name is None or not isinstance(query, Tensor):
        return None, None
    task, module = predictor.task, replica(predictor.module).eval()
    support = map_inputs(lambda part: part.unsqueeze(0), task.support_x)
    with torch.no_grad():
        start = module.before_learning(support)
    before = None if start is None else _gradient_map(predictor, start, query, name)
    return before, _gradient_map(predictor, predictor.state, query, name)


@torch.no_grad()
def _last_map(predictor: Predictor[Any], query: Inputs) -> str | None:
    """The name of the last part of the backbone that returns feature maps of more than one place."""
    backbone = getattr(predictor.module, "backbone", None)
    if not isinstance(backbone, nn.Module):
        return None
    found: list[str] = []

    def noticing(name: str) -> Callable[[Tensor], None]:
        def notice(output: Tensor) -> None:
            if output.dim() == 4 and output.shape[2:].numel() > 1:
                found.append(name)

        return notice

    _run(predictor, predictor.state, query, {name: noticing(name) for name, _ in backbone.named_modules()})
    return found[-1] if found else None


def _gradient_map(predictor: Predictor[Any], state: Any, query: Tensor, name: str) -> Tensor:  # noqa: ANN401
    r"""Grad-CAM :math:`\mathrm{relu}(\sum_k \bar g_k A_k)` of the predicted class, ``(H, W)`` of the query."""
    maps: list[Tensor] = []

    def cut(output: Tensor) -> Tensor:
        maps.append(output.detach().requires_grad_())
        return maps[-1]

    with torch.enable_grad():
        score = _answers(predictor, _run(predictor, state, query, {name: cut})[:1]).sum()
        gradient = torch.autograd.grad(score, maps[-1])[0]
    found = (gradient.mean((2, 3), keepdim=True) * maps[-1]).sum(1, keepdim=True).relu()[-1:].detach().float()
    found = F.interpolate(found, tuple(query.shape[-2:]), mode="bilinear", align_corners=False)[0, 0].cpu()
    return found / found.max().clamp(min=1e-12)


def _answers(predictor: Predictor[Any], outputs: Tensor, place: int | None = None) -> Tensor:
    """Log-probabilities ``(N,)`` of a class, by default the most probable; for a regression the summed values."""
    if not predictor.classes:
        return outputs.flatten(1).sum(1)
    scores = outputs[:, : len(predictor.classes)].log_softmax(-1)
    return scores.amax(-1) if place is None else scores[:, place]


# ---- integrated gradients


def _integrated(predictor: Predictor[Any], query: Inputs) -> Attributions:
    """Integrated gradients of the answer, with respect to the query or to the embeddings of its tokens."""
    place = int(predictor._points(predictor.task, query).argmax()) if predictor.classes else None
    if isinstance(query, Tensor):

        def answer(x: Tensor) -> Tensor:
            return _answers(predictor, _run(predictor, predictor.state, x, {}), place)

        support = predictor.task.support_x
        assert isinstance(support, Tensor)
        start = support.to(query.dtype).mean(0, keepdim=True)
        return integrated_gradients(answer, query, start, predictor.module.transductive)
    backbone: Any = predictor.module.backbone  # only networks with a backbone read texts
    name = next((name for name, part in backbone.named_modules() if isinstance(part, nn.Embedding)), None)
    if name is None:
        raise UserError(f"{type(backbone).__name__} has no nn.Embedding: integrated gradients of texts start from it.")
    kept: list[Tensor] = []
    _run(predictor, predictor.state, query, {name: kept.append})

    def of_embeddings(embedded: Tensor) -> Tensor:
        texts = map_inputs(lambda part: part.expand(len(embedded), -1), query)
        return _answers(predictor, _run(predictor, predictor.state, texts, {name: lambda _: embedded}), place)

    embedded = kept[0].detach()
    found = integrated_gradients(of_embeddings, embedded, torch.zeros_like(embedded), predictor.module.transductive)
    return found._replace(values=found.values.sum(-1))
