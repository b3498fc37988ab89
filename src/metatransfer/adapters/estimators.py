"""All estimators that follow scikit-learn: domain adapters and importance weights.

Import it only where one of them is used, because importing scikit-learn takes a second.
"""

from metatransfer.adapters import domain, importance
from metatransfer.adapters.domain import *  # noqa: F403
from metatransfer.adapters.importance import *  # noqa: F403

__all__ = []
__all__ += domain.__all__
__all__ += importance.__all__
