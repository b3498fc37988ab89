"""The folders that a run writes to, and the checkpoints of earlier runs in them."""

from pathlib import Path

from jsonargparse import Namespace

from metatransfer.callbacks.adaptation_gain import FALLBACK
from metatransfer.checks import check_file
from metatransfer.cli.linking import arguments_of
from metatransfer.errors import UserError
from metatransfer.methods.checkpoints import read_checkpoint
from metatransfer.storage import short_path


def output_folders(settings: Namespace) -> list[tuple[str, str | Path]]:
    """The folders that a run will write to, each after the argument that names it."""
    trainer = settings.trainer
    found = [("checkpoint.dirpath", settings.checkpoint.dirpath)] if "checkpoint" in settings else []
    for name in ("logger", "callbacks"):
        given = trainer.get(name)
        for item in given if isinstance(given, list) else [given]:
            found += [(f"trainer.{name}.{key}", arguments_of(item).get(key)) for key in ("save_dir", "dirpath")]
    found = [(name, folder) for name, folder in found if folder]
    if trainer.default_root_dir or not any(name == "trainer.logger.save_dir" for name, _ in found):
        found.insert(0, ("trainer.default_root_dir", trainer.default_root_dir or Path.cwd()))
    return found


def newest_checkpoint(settings: Namespace) -> Path | None:
    """The last checkpoint of the newest run that wrote to the same folders, or ``None``."""
    found: list[Path] = []
    for name, folder in output_folders(settings):
        runs = [""] if name.endswith("dirpath") else ["*/checkpoints/", "*/*/checkpoints/"]
        found += [path for run in runs for path in Path(folder).glob(f"{run}last*.ckpt")]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def find_checkpoint(word: str, settings: Namespace) -> Path:
    """The checkpoint that ``"last"`` or ``"best"`` stands for: that of the newest run; raises an error without one."""
    last = newest_checkpoint(settings)
    if last is None:
        places = " or ".join(f"'{short_path(folder)}'" for _, folder in output_folders(settings))
        raise UserError(f"--ckpt_path {word} needs an earlier run, but there is none with a last.ckpt in {places}: fit "
                        "first, or give the path of a checkpoint.")  # fmt: skip
    found = last if word == "last" else best_beside(last)
    if found is None:
        raise UserError(f"--ckpt_path best: the newest run has only {short_path(last)}: use --ckpt_path last.")
    return found


def best_beside(last: Path) -> Path | None:
    """The best checkpoint of the run with the given last one, or ``None`` if no validation has selected one."""
    states = read_checkpoint(last).get("callbacks", {}).values()
    best = next((state["best_model_path"] for state in states if state.get("best_model_path")), "")
    # the fallback is chosen after the last checkpoint is written; and the run may have been moved
    places = (last.with_name(FALLBACK), *((Path(best), last.with_name(Path(best).name)) if best else ()))
    return next((path for path in places if path.is_file()), None)


def named_checkpoint(given: str) -> Path:
    """A checkpoint file; for ``"last"`` and ``"best"`` that of the newest run under this folder, which is printed."""
    if given not in ("last", "best"):
        return check_file(given, "checkpoint")
    trainer = Namespace(default_root_dir=None, logger=None, callbacks=None)  # type: ignore[no-untyped-call]
    found = find_checkpoint(given, Namespace(trainer=trainer))  # type: ignore[no-untyped-call]
    print(f"--ckpt_path {given} is {short_path(found)}")
    return found
