"""The output folder of a run."""

from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger


def run_folder(trainer: Trainer) -> Path:
    """The output folder of a run, chosen by all processes together: one can write without the others afterwards."""
    if not hasattr(trainer, "_metatransfer_run_folder"):
        chosen = trainer.strategy.broadcast(_choose(trainer) if trainer.is_global_zero else None)
        trainer._metatransfer_run_folder = chosen  # type: ignore[attr-defined]
    folder: Path = trainer._metatransfer_run_folder  # type: ignore[attr-defined]
    return folder


def claim_versions(trainer: Trainer) -> None:
    """Gives each logger a version of its own, also if several runs start at the same time."""
    for logger in trainer.loggers if trainer.is_global_zero else ():
        if isinstance(logger, TensorBoardLogger | CSVLogger) and logger._version is None:
            logger._version = claimed_version(Path(logger.root_dir).expanduser())


def _choose(trainer: Trainer) -> Path:
    logger = trainer.logger
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return Path(trainer.default_root_dir)  # nothing is written
    if isinstance(logger, TensorBoardLogger | CSVLogger):
        return Path(logger.log_dir).expanduser()
    if logger is not None:
        return Path(logger.save_dir or trainer.default_root_dir).expanduser() / str(logger.name) / str(logger.version)
    root = Path(trainer.default_root_dir) / "lightning_logs"
    return root / f"version_{claimed_version(root)}"


def claimed_version(root: Path) -> int:
    """The number of the next ``version_<number>``: creating the folder claims it, because only one process can."""
    taken = [int(path.name[8:]) for path in root.glob("version_*") if path.name[8:].isdigit()]
    version = max(taken, default=-1) + 1
    try:
        (root / f"version_{version}").mkdir(parents=True)
    except FileExistsError:
        return claimed_version(root)
    return version
