"""Pure functions on tensors: no Lightning, no state."""

from metatransfer.functional import losses, meta, random
from metatransfer.functional.losses import *
from metatransfer.functional.meta import *
from metatransfer.functional.random import *

__all__ = []
__all__ += losses.__all__
__all__ += meta.__all__
__all__ += random.__all__
