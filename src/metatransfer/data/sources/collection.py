"""What a user names as data: a collection says what its samples are, and knows no data module."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

from metatransfer.data.sources.base import Encoder, Source
from metatransfer.data.sources.derived import UnlabelledPart, without_labels
from metatransfer.data.sources.generator import TaskGenerator
from metatransfer.data.sources.names import SPLITS
from metatransfer.errors import UserError


class Collection(ABC):
    """Data that can be served as episodes, as labelled batches or as a domain.

    A subclass writes :meth:`parts` and, where they make sense, some of the other methods, which have defaults::

        class Mine(Collection):
            def parts(self):
                return {"all": TensorSource(x, y, ["cat", "dog"], "mine")}

    Attributes:
        skipped: number of samples left out, for each part that was opened.
        divided_by: how the parts differ where the collection knows it without opening them: ``"class"`` if each has
            classes of its own, ``"sample"`` if all have the same. With ``"class"`` a server opens only the parts that a
            run needs.
        rotations: how the classes of each split are rotated in episodes where the user does not say it.
        of_texts: whether samples are texts, which cannot be augmented, transformed or rotated.
        within_groups: whether episodes stay within one group of classes where the user does not say it.
    """

    divided_by: Literal["class", "sample"] | None = None
    rotations: Mapping[str, Literal["none", "classes", "per_class"]] = {}
    of_texts: bool = False
    within_groups: bool = False

    @abstractmethod
    def parts(self) -> Mapping[str, Source | TaskGenerator]:
        """The samples: ``{"all": source}`` undivided, or ``"train"`` with or without ``"val"`` and ``"test"``.

        A :class:`LazyParts` opens each part when it is first asked for.
        """

    def unlabelled_parts(self) -> Mapping[str, UnlabelledPart]:
        """The samples apart from their labels, for a target domain, divided as in :meth:`parts`.

        A subclass overrides it where samples may come without labels, or where :meth:`parts` sorts them by label:
        nothing that a target is trained or validated on may follow from its labels.

        Raises:
            UserError: tasks that are generated have no samples.
        """
        found: dict[str, UnlabelledPart] = {}
        for name, source in self.opened().items():
            if not isinstance(source, Source):
                raise UserError(f"{type(self).__name__} generates tasks and has no samples for a domain.")
            found[name] = without_labels(source)
        return found

    def unlabelled(self, path: str) -> tuple[Source, tuple[str, ...]]:
        """Samples to be labelled by ``lightning predict``.

        Args:
            path: the folder or file that the user gave.

        Returns:
            The samples, whose labels play no role, and a name for each.

        Raises:
            UserError: this collection cannot read files to label, or not this one.
        """
        raise UserError(f"{type(self).__name__} does not read files to label ('{path}'): leave predict out.")

    def convert(self, item: Any) -> Tensor:  # noqa: ANN401
        """One raw sample, such as a PIL image, as those of the collection look to a network.

        Args:
            item: the raw sample.

        Returns:
            ``sample_shape`` float32, images in [0, 1].

        Raises:
            UserError: the collection cannot convert such samples.
        """
        raise UserError(
            f"{type(self).__name__} cannot read image files like its samples, so it cannot predict folders."
        )

    def encoder(self, training: Source) -> Encoder | None:
        """What texts are read through, made from training samples (a vocabulary) or opened (a tokenizer).

        Args:
            training: the training samples.

        Returns:
            The encoder; ``None`` for samples that need none.
        """
        return None

    def encoder_from(self, state: Mapping[str, Any]) -> Encoder | None:
        """The encoder of a checkpoint.

        Args:
            state: from :meth:`Encoder.state`.

        Returns:
            The encoder; ``None`` for samples that need none.

        Raises:
            UserError: the checkpoint was trained with another one.
        """
        return None

    def protocol(self) -> dict[str, Any]:
        """What must be reported beside every number measured on this data, e.g. checksums; may name the ``split``."""
        return {}

    def prepare(self) -> None:  # noqa: B027 - most have nothing to download
        """Downloads what may be downloaded; called in one process."""

    @property
    def skipped(self) -> dict[str, int]:
        """Number of samples left out, by part; to be filled by :meth:`parts`."""
        found: dict[str, int] = self.__dict__.setdefault("_skipped", {})
        return found

    def opened(self) -> Mapping[str, Source | TaskGenerator]:
        """What :meth:`parts` returns, opened once and checked.

        Returns:
            The parts.

        Raises:
            UserError: parts of other names or types.
        """
        if "_opened" not in self.__dict__:
            parts = self.parts()
            names = list(map(str, parts)) if isinstance(parts, Mapping) else [type(parts).__name__]
            if set(names) - {"all", *SPLITS} or ("all" in names) == ("train" in names):
                raise UserError(
                    f"{type(self).__name__}.parts must return {{'all': source}}, or sources for 'train' and, where "
                    f"there are any, 'val' and 'test', but returned {', '.join(names) or 'nothing'}."
                )
            self.__dict__["_opened"] = parts
        opened: Mapping[str, Source | TaskGenerator] = self.__dict__["_opened"]
        return opened


class LazyParts(Mapping[str, Source]):
    """Parts that are opened when they are first asked for.

    Args:
        open_part: makes the source of a part from its name.
        names: of the parts.
    """

    def __init__(self, open_part: Callable[[str], Source], names: Sequence[str]) -> None:
        self._open, self._names = open_part, tuple(names)
        self._found: dict[str, Source] = {}

    def __getitem__(self, name: str) -> Source:
        if name not in self._names:
            raise KeyError(name)
        if name not in self._found:
            self._found[name] = self._open(name)
        return self._found[name]

    def __contains__(self, name: object) -> bool:
        return name in self._names  # the inherited one opens the part to find out

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
