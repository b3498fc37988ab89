"""Writes a trained method as a file that runs without this package: ONNX or torch.export."""

from pathlib import Path

import jsonargparse
import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule

from metatransfer.batches import PredictionTask
from metatransfer.checks import check_count, check_file
from metatransfer.cli.config_files import check_config, check_known
from metatransfer.cli.folders import named_checkpoint
from metatransfer.cli.linking import build_data
from metatransfer.cli.messages import explain
from metatransfer.cli.parser import ArgumentParser, ParserError
from metatransfer.cli.rewriting import rewrite_config
from metatransfer.data import EpisodicDataModule
from metatransfer.data.serving.settings import PredictFolders
from metatransfer.errors import UserError
from metatransfer.methods import EpisodicModule, Exported, MethodModule, export_module, load
from metatransfer.storage import short_path


def arguments(parser: jsonargparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument(
        "--ckpt_path", type=str, required=True, help="checkpoint of the trained method, or last or best"
    )
    parser.add_argument("--output", type=str, required=True, help="file to write, model.onnx or model.pt2")
    parser.add_argument(
        "--support", type=str | None, help="folder <label>/<image>: a few-shot method is adapted to it first"
    )
    parser.add_argument(
        "--config", type=str | None, help="configuration of the run, to read the images (default: its config.yaml)"
    )
    parser.add_argument("--shape", type=list[int] | None, help="shape of a sample, for networks that take any")
    parser.add_argument("--tolerance", type=float, default=1e-5, help="largest difference from the method's answers")


def run(settings: Namespace) -> None:
    """Exports and prints how the file compares.

    Raises:
        UserError: the checkpoint, the folder or the configuration cannot be read, or the method cannot be exported.
    """
    settings.ckpt_path = named_checkpoint(settings.ckpt_path)
    module = load(settings.ckpt_path)
    print(_adapted(module, settings) if settings.support else _whole(module, settings))


def _whole(module: MethodModule, settings: Namespace) -> Exported:
    shape = settings.shape
    for size in shape or ():
        check_count(1, shape=size)
    samples = torch.rand(6, *shape, generator=torch.Generator().manual_seed(0)) if shape else None
    return export_module(module, settings.output, samples, settings.tolerance)


def _adapted(module: MethodModule, settings: Namespace) -> Exported:
    if not isinstance(module, EpisodicModule):
        raise UserError(f"{type(module).__name__} is not adapted to a support folder: leave out --support.")
    task = _task(_data(settings), settings.support)
    return module.adapt(task.support_x, task.support_labels).export(settings.output, settings.tolerance)


def _data(settings: Namespace) -> LightningDataModule:
    """The data module of the run, which reads images as in the training."""
    place = settings.config or Path(settings.ckpt_path).expanduser().resolve().parent.parent / "config.yaml"
    if not settings.config and not Path(place).exists():
        raise UserError(
            f"--support needs the data settings of the run, but there is no '{short_path(place)}': give its "
            "configuration as --config."
        )
    file = check_file(place, "configuration")
    check_config(file)
    described = (yaml.safe_load(rewrite_config(file.read_text(encoding="utf-8"))) or {}).get("data")
    if not described:
        raise UserError(f"configuration '{short_path(file)}' has no section data: give that of the training.")
    if not settings.config:
        check_known(described, file)
    parser = ArgumentParser()
    parser.add_subclass_arguments(LightningDataModule, "data")
    try:
        found = parser.parse_object({"data": described}).data
    except ParserError as error:
        raise UserError(f"configuration '{short_path(file)}': {explain(str(error))}") from error
    return build_data(found)


def _task(data: LightningDataModule, support: str) -> PredictionTask:
    """The labelled images of a folder, as ``lightning predict`` reads them."""
    if not isinstance(data, EpisodicDataModule):
        raise UserError(
            f"--support needs data that serves few-shot tasks, an EpisodicDataModule, but the run has a "
            f"{type(data).__name__}."
        )
    data.predict = PredictFolders(support, support)
    data.setup("predict")
    return next(iter(data.predict_dataloader()))
