"""Which arguments of an entry are searched, and between which values."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import yaml

from metatransfer.callbacks.run.display import show
from metatransfer.checks import check_count, check_file
from metatransfer.cli.entries import check_common, read_data
from metatransfer.cli.entry_run import Job, settings_of
from metatransfer.errors import UserError, explained

Values = dict[str, Any] | list[Any]
Space = dict[str, Values]
"""By argument: a range as in ``{low: 1e-4, high: 1e-1, log: true}``, or a list of values."""

_RANGE = ("low", "high", "log", "step")
_RATES = ("model.optimizer.lr", "model.inner.lr")
_DECAY, _DECAYS = "model.optimizer.weight_decay", (0.0, 1e-5, 1e-4, 1e-3, 1e-2)
_FACTOR = 10.0  # of the smallest and the largest learning rate around the configured one
_HELP = "give a list of values, or a range such as {low: 1e-4, high: 1e-1, log: true}"


def read_options(given: int | str | Mapping[str, Any]) -> tuple[int, Space | None]:
    """The number of trials, and the space that the user gives, if any.

    Raises:
        UserError: an option is unknown or invalid.
    """
    options = read_data(given if isinstance(given, Mapping) else {"trials": given})
    trials, space = options.pop("trials", None), options.pop("space", None)
    if options or trials is None:
        raise UserError("tune needs a number of trials, and optionally a space: give --tune 20 --tune.space FILE.")
    check_count(1, 10_000, tune=trials)
    return trials, None if space is None else _read_space(space)


def _read_space(given: Any) -> Space:  # noqa: ANN401
    if isinstance(given, str):
        text = check_file(given, "tune.space").read_text(encoding="utf-8")
        with explained(f"tune.space '{given}' is not a YAML file", "write one line NAME: VALUES for each argument"):
            given = yaml.safe_load(text)
    if not isinstance(given, Mapping) or not given:
        raise UserError(f"tune.space must map arguments to their values, but is '{given}': {_HELP}.")
    found = dict(_flat("", given))
    for name, values in found.items():
        check_common("tune.space", [f"--{name}"])
        if not (isinstance(values, list) and values) and not (
            isinstance(values, dict) and {"low", "high"} <= {*values}
        ):
            raise UserError(f"tune.space: {name} must have a list or a range of values, but has '{values}': {_HELP}.")
    return {name: _numbers(name, values) if isinstance(values, dict) else values for name, values in found.items()}


def _flat(name: str, given: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Arguments by their whole names, of names with dots or of nested sections."""
    for key, value in given.items():
        path = f"{name}.{key}".lstrip(".-")
        if isinstance(value, Mapping) and not {*value} <= {*_RANGE}:
            yield from _flat(path, value)
        else:
            yield path, dict(value) if isinstance(value, Mapping) else value


def _numbers(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """A range with numbers; YAML reads ``1e-4`` as a text."""
    with explained(f"tune.space: the range of {name} must have numbers", _HELP, TypeError, ValueError):
        return {key: float(one) if isinstance(one, str) else one for key, one in values.items()}


# ---- of an entry


def spaces_of(jobs: Mapping[str, Job], given: Space | None) -> dict[str, Space]:
    """The space of each entry: of a given one, the arguments that the entry has, or else the default one.

    By default, learning rates are between a tenth and ten times of the configured ones, and the weight decay is
    configured or one of five.

    Raises:
        UserError: no entry has a given argument, or none accepts its values.

    An argument that an entry does not have, or of which it rejects a value, is not searched for it, and printed.
    """
    if given is None:
        return {name: _default(settings_of(job)) for name, job in jobs.items()}
    found: dict[str, Space] = {name: {} for name in jobs}
    for argument, values in given.items():
        errors = {name: _error(job, argument, values) for name, job in jobs.items()}
        if all(errors.values()):
            raise UserError(f"tune.space: no entry accepts {argument}: {next(iter(errors.values()))}")
        for name in jobs:
            if not errors[name]:
                found[name][argument] = values
            else:
                show(f"{name}: {argument} is not tuned: {errors[name]}")
    return found


def _default(settings: Any) -> Space:  # noqa: ANN401
    found: Space = {}
    for name in _RATES:
        if rate := _number_at(settings, name):
            found[name] = {"low": rate / _FACTOR, "high": rate * _FACTOR, "log": True}
    decay = _number_at(settings, _DECAY)
    if decay is not None:
        found[_DECAY] = sorted({*_DECAYS, decay})
    return found


def _number_at(settings: Any, name: str) -> float | None:  # noqa: ANN401
    value = value_at(settings, name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0 else None


def value_at(settings: Any, name: str) -> Any:  # noqa: ANN401
    """The value of an argument in a parsed configuration; ``None`` if it has none."""
    for key in name.split("."):
        if hasattr(settings, "keys") and key not in settings:
            settings = settings.get("init_args")
        settings = settings.get(key) if hasattr(settings, "keys") else None
    return settings


def configured_values(job: Job, space: Space) -> dict[str, Any]:
    """The configured values of the arguments whose space includes them; of a list, as texts."""
    settings = settings_of(job)
    found = {name: value_at(settings, name) for name in space}
    return {name: _chosen(value, space[name]) for name, value in found.items() if inside(value, space[name])}


def _chosen(value: Any, values: Values) -> Any:  # noqa: ANN401
    """A value as Optuna knows it: of a list, the text of the equal item, since 0.0 may stand there as 0."""
    if isinstance(values, dict):
        return value
    texts = [as_text(one) for one in values if one == value]
    return as_text(value) if as_text(value) in texts else texts[0]


def _error(job: Job, argument: str, values: Values) -> str:
    """Why an entry does not accept the values of an argument; empty if it does."""
    chosen = values if isinstance(values, list) else [values["low"], values["high"]]
    try:
        for one in chosen:
            settings_of(replace(job, arguments=(*job.arguments, *as_arguments({argument: one}))))
    except UserError as error:
        return str(error)
    return ""


def as_arguments(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Arguments of the command line."""
    return tuple(f"--{name}={as_text(one)}" for name, one in values.items())


def as_text(value: Any) -> str:  # noqa: ANN401
    """A value as the command line takes it."""
    return value if isinstance(value, str) else json.dumps(value)


def as_value(text: Any) -> Any:  # noqa: ANN401
    """The value of :func:`as_text`."""
    try:
        return json.loads(text) if isinstance(text, str) else text
    except ValueError:
        return text


def inside(value: Any, values: Values) -> bool:  # noqa: ANN401
    """Whether a value is one of those that are searched."""
    if isinstance(values, Sequence):
        return value in values
    return isinstance(value, int | float) and bool(values["low"] <= value <= values["high"])
