"""Access of methods to the data of their run."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer

from metatransfer.data_info import DataInfo, ServesData


def datamodule_of(run: LightningModule | Trainer | None) -> Any:  # noqa: ANN401
    """The data module of a run, of any package; ``None`` for loaders and outside a run."""
    trainer = run._trainer if isinstance(run, LightningModule) else run  # its public name raises an error outside
    return getattr(trainer, "datamodule", None)  # set by Lightning's data connector, not by the Trainer's constructor


def info_of(run: LightningModule | Trainer | None) -> DataInfo | None:
    """The description of the data of a run; ``None`` unless a data module of this package serves it."""
    data = datamodule_of(run)
    return data.info() if isinstance(data, ServesData) else None
