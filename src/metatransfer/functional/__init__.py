"""Pure functions on tensors: no Lightning, no state."""

from metatransfer.functional import losses, meta, random, representations, task_embedding, transferability
from metatransfer.functional.losses import *
from metatransfer.functional.meta import *
from metatransfer.functional.random import *
from metatransfer.functional.representations import *
from metatransfer.functional.task_embedding import *
from metatransfer.functional.task_features import *
from metatransfer.functional.transferability import *

__all__ = ["TaskFeatures", "task_features"]  # the module has the name of its function
__all__ += losses.__all__
__all__ += meta.__all__
__all__ += random.__all__
__all__ += representations.__all__
__all__ += task_embedding.__all__
__all__ += transferability.__all__
