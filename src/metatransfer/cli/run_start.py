"""The start of a run, rebuilt from its configuration and seed."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule, LightningModule, seed_everything

from metatransfer.checks import check_file, check_seed
from metatransfer.cli.config_files import check_config, check_known
from metatransfer.cli.linking import build_data, follow_data
from metatransfer.cli.messages import explain
from metatransfer.cli.parser import ArgumentParser, ParserError
from metatransfer.cli.rewriting import classes_given, rewrite_arguments
from metatransfer.errors import UserError
from metatransfer.methods import MethodModule
from metatransfer.module_keys import weights_key
from metatransfer.storage import short_path
from metatransfer.trust import check_classes


class Start(NamedTuple):
    """A run before its training.

    Attributes:
        module: the method with its initial weights.
        data: the data module, with the options that were given.
        seed: the seed of the run.
    """

    module: MethodModule
    data: LightningDataModule
    seed: int


def rebuilt(checkpoint: Path, content: Mapping[str, Any], config: str | None, options: Sequence[str]) -> Start:
    """Builds a run again as ``fit`` did, and checks that its weights have the bits that the checkpoint records.

    Args:
        checkpoint: a file in the folder ``checkpoints`` of the run.
        content: its content.
        config: configuration of the run; defaults to ``config.yaml`` in the run's folder.
        options: arguments such as ``--data.source`` that replace those of the configuration.

    Raises:
        UserError: there is no configuration, or the initial weights are not those of the run.
    """
    place = Path(config).expanduser() if config else checkpoint.resolve().parent.parent / "config.yaml"
    if not config and not place.exists():
        raise UserError(
            f"the initial weights are rebuilt from the run's configuration, but there is no '{short_path(place)}': "
            "give it as --config, or call metatransfer.experiments.carried_over with a copy of the untrained method."
        )
    settings = _settings(check_file(place, "configuration"), options, given=bool(config))
    check_classes(settings)
    seed_everything(settings.seed_everything, workers=True, verbose=False)
    data = build_data(settings.data)  # first, as in a fit
    follow_data(settings.model, data)
    module = _parser().instantiate(Namespace(model=settings.model)).model  # type: ignore[no-untyped-call]
    name = short_path(checkpoint)
    if not isinstance(module, MethodModule):
        raise UserError(f"'{short_path(place)}' describes a {type(module).__name__}, which is not a method.")
    if "started_from" not in content and weights_key(module) is None:
        raise UserError(
            f"'{name}' has no record of the initial weights, because the network of '{short_path(place)}' has none "
            "before its first batch (as with LazyLinear): explain needs layers whose sizes are given."
        )
    if "started_from" not in content:
        raise UserError(f"'{name}' has no record of the initial weights, which lightning fit makes: train again.")
    if weights_key(module) != content["started_from"]:
        raise UserError(
            f"'{short_path(place)}' with seed {settings.seed_everything} gives other initial weights than those that "
            f"'{name}' records (the configuration, a weights file, the code or a version has changed, or the run was "
            "started in another way): train again, or give the run's configuration as --config."
        )
    return Start(module, data, settings.seed_everything)


def _settings(file: Path, options: Sequence[str], given: bool) -> Namespace:
    check_config(file)
    found = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    missing = next((key for key in ("model", "data") if not found.get(key)), None)
    if missing:
        raise UserError(f"configuration '{short_path(file)}' has no section {missing}: give the run's configuration.")
    kept = {key: found[key] for key in ("seed_everything", "model", "data") if key in found}
    if not given:
        check_known(kept, file)
    words = rewrite_arguments(["--config", json.dumps(kept), *options])
    parser = _parser()
    parser.replaced = classes_given(words)
    try:
        settings: Namespace = parser.parse_args(words)
    except ParserError as error:
        raise UserError(f"configuration '{short_path(file)}': {explain(str(error))}") from error
    check_seed(seed_everything=settings.seed_everything)
    return settings


def _parser() -> ArgumentParser:
    parser = ArgumentParser(allow_abbrev=False)
    parser.add_argument("--config", action="config")
    parser.add_argument("--seed_everything", type=int, default=0)
    parser.add_lightning_class_args(LightningModule, "model", subclass_mode=True)
    parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True)
    return parser
