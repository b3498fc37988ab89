"""The base class of all collections; it lives among the sources because data modules need it, too."""

from metatransfer.data.sources.collection import Collection, LazyParts

__all__ = ["Collection", "LazyParts"]
