"""Entries of a comparison: configurations with arguments, and the situation that the data put them in."""

import hashlib
import itertools
import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from pydoc import locate
from typing import Any, Literal, NamedTuple

import yaml

import metatransfer
from metatransfer.batches import DomainBatch, Episode
from metatransfer.checks import did_you_mean
from metatransfer.cli.config_files import check_config, packaged_configs
from metatransfer.cli.messages import explain
from metatransfer.cli.parser import ArgumentParser, ParserError
from metatransfer.cli.rewriting import rewrite_config
from metatransfer.data.sources import Collection, Source
from metatransfer.errors import UserError
from metatransfer.methods.classifier import SampleClassifier
from metatransfer.methods.episodic import EpisodicModule

Kind = Literal["new classes", "few labels", "domains"]
_TIME = re.compile(r"\d+(:\d+)+")  # stays a text: 1:30:00 is the number 5400 for YAML 1.1
_MANY = 30  # classes: with as many, and nothing else said, new classes are the question
_EPISODIC = ("task", "eval_task", "episodes")
_LABELLED = ("labels_per_class", "batch_size", "balance")
# what a comparison has in common, so that no entry may have its own
_COMMON = ("config", "seed_everything", "ckpt_path", "trainer.max_steps", "trainer.max_time", "trainer.min_steps",
           "trainer.min_epochs", "trainer.devices", "trainer.num_nodes")  # fmt: skip
_OWN_DATA = re.compile(
    r"data\.(episodes\.)?(task(\..+)?|episodes\.(train|per_batch)|(\w+_)?batch_size|balance|num_workers|"
    r"processing\.augmentation(\..+)?)"
)
_WORDS = {
    "new classes": "new classes with few labels, after training on other classes",
    "few labels": "fixed classes with labelled training samples",
    "domains": "labels in another domain",
}


class Situation(NamedTuple):
    """What a user wants to know of the data.

    Attributes:
        kind: the name of the situation.
        reason: how it follows from the data.
        fingerprint: hash of the samples and of the options of the data.
        name: of the data, for titles and folders.
    """

    kind: Kind
    reason: str
    fingerprint: str
    name: str

    def __str__(self) -> str:
        return f"{_WORDS[self.kind]} ({self.reason})"


@dataclass(frozen=True)
class Candidate:
    """A configuration with the arguments after it.

    Attributes:
        name: as it is shown.
        config: its content.
        arguments: replace values of the configuration.
        model: the class of its model.
    """

    name: str
    config: Mapping[str, Any]
    arguments: tuple[str, ...]
    model: type

    @classmethod
    def parse(cls, text: str) -> "Candidate":
        """Reads an entry such as ``protonet``, ``my.yaml`` or ``"maml --model.inner.steps 5"``.

        Raises:
            UserError: the configuration does not exist, has no model, or sets what is the same for all entries.
        """
        head, *arguments = words(text) or [""]
        known = packaged_configs()
        path = head if os.path.isfile(head) else known.get(head.removeprefix("configs/").removesuffix(".yaml"))
        if path is None:
            hint = did_you_mean(head, known)
            more = f" Known: {', '.join(name for name in known if '/' not in name)}." if hint == "." else ""
            raise UserError(
                f"unknown method '{head}'{hint}{more} Give the name of a configuration, or a YAML file of your own."
            )
        check_config(path)
        config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        described = config.get("model")
        kind = described.get("class_path") if isinstance(described, dict) else described
        if not isinstance(kind, str):
            raise UserError(f"'{head}' has no section model with a class_path: add it.")
        check_common(head, [*(["--ckpt_path"] if config.get("ckpt_path") else []), *arguments])
        name = Path(head).stem if os.path.isfile(head) else head.removesuffix(".yaml")
        return cls(" ".join([name, *arguments]), config, tuple(arguments), _class(kind))

    def obstacle(self, situation: Situation) -> str | None:
        """Why the entry cannot take part, in a sentence."""
        learns = getattr(self.model, "learns_from", None)
        fits = {
            "new classes": issubclass(self.model, EpisodicModule) or learns is not DomainBatch,
            "few labels": issubclass(self.model, SampleClassifier) and learns is not DomainBatch,
            "domains": learns is DomainBatch,
        }
        if learns is not None and fits[situation.kind]:
            return None
        needs = (
            "tasks of new classes" if learns is Episode or issubclass(self.model, EpisodicModule)
            else "a source and a target domain" if learns is DomainBatch
            else "labelled samples of fixed classes"
        )  # fmt: skip
        return f"'{self.name}' is for {needs}, but the data are {situation}: leave it out, or give other data."

    def adding(self, arguments: Sequence[str]) -> "Candidate":
        """The entry, under the same name, with more arguments."""
        return replace(self, arguments=(*self.arguments, *arguments))

    @property
    def per_task(self) -> bool:
        """Whether, on tasks of new classes, it is fitted to every support set."""
        return issubclass(self.model, SampleClassifier)

    @property
    def pretrained(self) -> bool:
        """Whether its network has weights from a file."""
        return _part(self.config, "model", "init_args", "backbone", "init_args").get("weights") is not None


def words(text: str, windows: bool = os.name == "nt") -> list[str]:
    """The words of a command line, whose backslashes are a part of paths on Windows."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=False)
    lexer.whitespace_split, lexer.commenters = True, ""
    if windows:
        lexer.escape = ""
    return list(lexer)


def epochs_in(arguments: Sequence[str], epochs: Any) -> Any:  # noqa: ANN401
    """The value of ``--trainer.max_epochs`` among the arguments of an entry; ``epochs`` if they do not have it."""
    for given, following in itertools.pairwise([*arguments, ""]):
        name, equals, value = given.partition("=")
        if name == "--trainer.max_epochs":
            epochs = yaml.safe_load(value if equals else following)
    return epochs


def check_common(head: str, arguments: Sequence[str]) -> None:
    """Raises an error for an argument that must be the same for all entries."""
    for given in arguments:
        name = given.partition("=")[0].removeprefix("--").removesuffix("+").replace(".init_args", "")
        # the parser accepts the beginning of a name, too
        common = any(one.startswith(name) or name.startswith(f"{one}.") for one in _COMMON)
        of_data = re.match(r"data(\.|$)", name) and not _OWN_DATA.fullmatch(name)
        if given.startswith("--") and (common or of_data):
            raise UserError(
                f"'{head}': --{name} must be the same for all entries: give it to the comparison, not to one entry."
            )


def _class(path: str) -> type:
    found = locate(path) if "." in path else getattr(metatransfer, path, None)
    if not isinstance(found, type):
        raise UserError(f"unknown class '{path}' of a model: give its name, or its import path (package.module.Class).")
    return found


def _part(config: Any, *keys: str) -> dict[str, Any]:  # noqa: ANN401
    """A nested section; empty if there is none."""
    for key in keys:
        config = config.get(key) if isinstance(config, Mapping) else None
    return dict(config) if isinstance(config, Mapping) else {}


# ---- the situation


def read_data(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the data with their types and nested; the command line gives texts by names as ``task/num_ways``.

    Options of the command line come after those of a file, and replace them.
    """
    found: dict[str, Any] = {}
    for path, value in given.items():
        *outer, name = path.split("/")
        place = found
        for key in outer:
            if not isinstance(place.get(key), dict):
                place[key] = {}
            place = place[key]
        read = yaml.safe_load(value) if isinstance(value, str) and not _TIME.fullmatch(value) else value
        place[name] = read_data(read) if isinstance(read, Mapping) else read
    return found


def situation_of(data: Mapping[str, Any]) -> Situation:
    """Opens the data and says which situation they are in.

    Raises:
        UserError: neither ``source`` nor ``sources`` and ``targets`` are given, or the data cannot be opened.
    """
    if "sources" in data and "targets" in data:
        sides = {side: data[side] for side in ("sources", "targets")}
        if not all(isinstance(one, Mapping) and one for one in sides.values()):
            raise UserError("data.sources and data.targets need names: give for example --data.sources.photos DIR.")
        opened = [open_collection(collection_of(one)) for side in sides.values() for one in side.values()]
        name = "-".join([*sides["sources"], "to", *sides["targets"]])
        return Situation("domains", "sources and targets are given", _fingerprint(data, opened), name)
    if not isinstance(data.get("source"), str | Mapping):
        raise UserError("data need a source: give --data.source PATH or NAME, or --data.sources and --data.targets.")
    collection = open_collection(data["source"])
    kind, reason = judged(data, collection)
    source = data["source"]
    name = Path(source).stem if isinstance(source, str) else type(collection).__name__
    return Situation(kind, reason, _fingerprint(data, [collection]), name)


def judged(data: Mapping[str, Any], collection: Collection) -> tuple[Kind, str]:
    """Whether a collection with these options has new or fixed classes, and why."""
    for kind, options in (("new classes", _EPISODIC), ("few labels", _LABELLED)):
        if given := [name for name in options if name in data]:
            return kind, f"data.{given[0]} is given"  # type: ignore[return-value]
    parts = collection.opened()
    sources = [part for part in parts.values() if isinstance(part, Source)]
    if not sources:
        return "new classes", "the collection generates its tasks"
    names = [set(part.class_names) for part in sources]
    total = len(set().union(*names))
    if len(names) > 1 and sum(map(len, names)) == total:
        return "new classes", "the splits of the data have different classes"
    if len(names) == 1 and total >= _MANY:
        return (
            "new classes",
            f"there are {total} classes; for fixed ones, give --data.labels_per_class",
        )
    return "few labels", f"the splits share {total} classes" if len(names) > 1 else f"there are {total} classes"


def collection_of(described: Any) -> Any:  # noqa: ANN401
    """The collection of a domain, which may be described by its own data module."""
    return _part(described, "init_args").get("source", described)


def open_collection(described: Any) -> Collection:  # noqa: ANN401
    """The collection of a path, a name, or a class with its arguments."""
    parser = ArgumentParser(exit_on_error=True)
    parser.add_subclass_arguments(Collection, "source")
    try:
        found = parser.parse_string(rewrite_config(yaml.safe_dump({"source": described})), "", defaults=True)
        collection: Collection = parser.instantiate(found).source
    except ParserError as error:
        raise UserError(explain(str(error))) from error
    return collection


def _fingerprint(data: Mapping[str, Any], collections: list[Collection]) -> str:
    digest = hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode())
    for collection in collections:
        for name, part in collection.opened().items():
            generated = f"{type(part)} {collection.protocol()}"  # not its repr, which may name its place in memory
            digest.update(name.encode() + (part.fingerprint() if isinstance(part, Source) else generated).encode())
    return digest.hexdigest()
