"""Collections (which data), and data modules (how they are served)."""

from metatransfer.data import collections, sampling, serving, sources
from metatransfer.data.collections import *
from metatransfer.data.sampling import *
from metatransfer.data.serving import *
from metatransfer.data.serving.base import open_paths_by
from metatransfer.data.sources import *

open_paths_by(collections.open_path)  # a path may be given where a collection is expected

__all__ = sorted({*collections.__all__, *sampling.__all__, *serving.__all__, *sources.__all__})
