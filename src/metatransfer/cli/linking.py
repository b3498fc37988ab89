"""Arguments of a model that follow from its data."""

from typing import Any

from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import LightningDataModule

from metatransfer.data_info import ServesData

_OF_MODEL = ("num_outputs", "num_classes", "train_classes", "vocabulary_size")
_OF_BACKBONE = ("vocabulary_size", "in_shape", "in_channels", "image_size")


def build_data(settings: Namespace) -> LightningDataModule:
    """Builds the data module, which is needed before the model."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data")
    built: LightningDataModule = parser.instantiate(Namespace(data=settings)).data  # type: ignore[no-untyped-call]
    return built


def follow_data(model: Namespace, data: LightningDataModule) -> None:
    """Sets arguments of the model and its backbone that are null and follow from the data."""
    arguments = arguments_of(model)
    network = arguments_of(arguments.get("backbone"))
    wanted = [(place, name) for place, names in ((arguments, _OF_MODEL), (network, _OF_BACKBONE)) for name in names
              if name in place and place[name] is None]  # fmt: skip
    if not wanted or not isinstance(data, ServesData):
        return
    info = data.info()  # may open files, so only if needed
    shape = info.sample_shape
    image = len(shape) == 3
    found = {
        "num_outputs": info.num_outputs,
        "num_classes": info.num_classes,
        "vocabulary_size": info.vocabulary_size,
        "in_shape": list(shape) or None,
        "in_channels": shape[0] if image else None,
        "image_size": shape[1] if image and shape[1] == shape[2] else None,
    }
    for place, name in wanted:
        place[name] = info.train_classes if name == "train_classes" else found[name]


def arguments_of(described: Any) -> Namespace:  # noqa: ANN401
    """The arguments of a described class; none for anything else."""
    arguments = described.get("init_args") if isinstance(described, Namespace) else None
    return arguments if isinstance(arguments, Namespace) else Namespace()  # type: ignore[no-untyped-call]
