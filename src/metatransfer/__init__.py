"""metatransfer: meta-learning and transfer learning as LightningModules."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("metatransfer")
except PackageNotFoundError:  # a source tree without installation
    __version__ = "0+unknown"

from metatransfer import adapters, batches, callbacks, data, methods, metrics, nn
from metatransfer.adapters import *
from metatransfer.batches import *
from metatransfer.callbacks import *
from metatransfer.data import *
from metatransfer.errors import UserError
from metatransfer.methods import *
from metatransfer.metrics import *
from metatransfer.nn import *

__all__ = ["UserError", "__version__"]
__all__ += adapters.__all__
__all__ += batches.__all__
__all__ += callbacks.__all__
__all__ += data.__all__
__all__ += methods.__all__
__all__ += metrics.__all__
# blocks, layers and reports are for authors of methods, who import them from metatransfer.nn
__all__ += nn.backbones.__all__
__all__ += nn.heads.__all__
__all__ += ["load_weights"]
