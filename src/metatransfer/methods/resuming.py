"""Checks the state of a run in a checkpoint before the run goes on, so that damage is answered in one sentence."""

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from metatransfer.errors import UserError


def check_progress(checkpoint: Mapping[str, Any], trainer: Trainer) -> None:
    """Compares the progress of the run and the states of callbacks with those of a new run.

    Raises:
        UserError: names the first part that is missing or of another kind.
    """
    loop, callbacks = f"{getattr(trainer.state.fn, 'value', None)}_loop", checkpoint.get("callbacks", {})
    wrong = None
    if checkpoint.get("loops") and hasattr(trainer, loop):
        wrong = _difference(getattr(trainer, loop).state_dict(), checkpoint["loops"][loop], f"loops.{loop}")
    for callback in trainer.callbacks if not wrong else ():  # type: ignore[attr-defined]
        found, name = callbacks.get(callback.state_key), type(callback).__name__
        if wrong or found is None or found == {}:
            continue
        wrong = _wrong_kind({}, found, name)
        if not wrong and type(callback).__module__.startswith(
            ("lightning.", "metatransfer.")
        ):  # others may keep what they like
            own = callback.state_dict()  # what is inside may differ, such as the data of earlier numbers
            own |= {key: 0.0 for key, value in own.items() if value is None and key.endswith("_score")}
            common = [key for key in own if found.get(key) is not None]
            wrong = next(filter(None, (_wrong_kind(own[key], found[key], f"{name}.{key}") for key in common)), None)
        wrong = wrong or _problem(_load_callback, callback, found)
    if wrong:
        raise UserError(f"the checkpoint is damaged, {wrong}: give a file that fit wrote.")


def check_optimizers(checkpoint: Mapping[str, Any], trainer: Trainer) -> None:
    """Takes a step with copies of the optimisers and schedulers in the states of the checkpoint, with zero gradients.

    Raises:
        UserError: the step fails.
    """
    optimizers = zip(trainer.optimizers, checkpoint["optimizer_states"], strict=False)
    schedulers = zip(trainer.lr_scheduler_configs, checkpoint.get("lr_schedulers", ()), strict=False)
    trials = [(_step_optimizer, *pair) for pair in optimizers] + [(_step_scheduler, *pair) for pair in schedulers]
    for step, one, state in trials:
        problem = _problem(step, one, state)
        # what fails without a state, too, cannot be tried, such as LBFGS, which needs a closure
        if problem and not _problem(step, one, None):
            raise UserError(
                f"the checkpoint does not fit this run, {problem}: resume with the arguments of the run that wrote it, "
                "or give another file."
            )


def _problem(load: Callable[[Any, Any], None], one: Any, state: Any) -> str | None:  # noqa: ANN401
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they come again when Lightning loads the state
            load(one, state)
    except UserError:
        raise
    except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        name = type(getattr(one, "scheduler", one)).__name__
        return f"the state of {name} cannot be used ({(str(error).splitlines() or [''])[0]})"
    return None


def _load_callback(callback: Any, state: Any) -> None:  # noqa: ANN401
    copy.copy(callback).load_state_dict(copy.deepcopy(state))


def _step_optimizer(optimizer: Any, state: Any) -> None:  # noqa: ANN401
    try:
        _step_on("meta", optimizer, state)
    except Exception:  # any, because few optimisers were written for tensors without values
        _step_on("cpu", optimizer, state)


def _step_on(device: str, optimizer: Any, state: Any) -> None:  # noqa: ANN401
    """Takes a step with a copy on another device: on the run's own, the copy might not fit beside the network."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    # numbers keep their values, such as those of steps
    large = [tensor for tensor in [*parameters, *_tensors(state)] if tensor.numel() > 1]
    memo = {id(tensor): torch.zeros_like(tensor, device=device, requires_grad=False) for tensor in large}
    twin = copy.deepcopy(optimizer, memo)
    if state is not None:
        twin.load_state_dict(copy.deepcopy(state, memo))
    for group in twin.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    twin.step()


def _tensors(value: Any) -> Iterator[Tensor]:  # noqa: ANN401
    """The tensors in nested plain values."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(part)


def _step_scheduler(config: Any, state: Any) -> None:  # noqa: ANN401
    """What it does to the optimiser is undone by loading the optimiser's own state."""
    twin = copy.copy(config.scheduler)
    if state is not None:
        twin.load_state_dict(copy.deepcopy(state))
    with contextlib.suppress(ValueError):  # OneCycleLR at its end
        twin.step(*[0.0] * config.reduce_on_plateau)


def _difference(own: Any, found: Any, name: str) -> str | None:  # noqa: ANN401
    """The first difference in structure between two states of plain values."""
    wrong = _wrong_kind(own, found, name)
    for key, part in own.items() if isinstance(own, dict) else ():
        if wrong:
            break
        if key in found:
            wrong = _difference(part, found[key], f"{name}.{key}")
        elif isinstance(part, dict) and part:
            wrong = f"'{name}' has no '{key}'"
    return wrong


def _wrong_kind(own: Any, found: Any, name: str) -> str | None:  # noqa: ANN401
    if own is None or _kind(own) == _kind(found):
        return None
    return f"'{name}' is a {type(found).__name__} instead of a {type(own).__name__}"


def _kind(value: object) -> str:
    if isinstance(value, Tensor):
        return "number" if not value.dim() else "tensor"
    return "number" if isinstance(value, bool | int | float) else type(value).__name__
