"""The base class of all collections; it is among the sources because data modules, which know no collection, need it."""

from metatransfer.data.sources.collection import Collection, LazyParts

__all__ = ["Collection", "LazyParts"]
