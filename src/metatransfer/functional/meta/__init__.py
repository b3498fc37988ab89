"""Functions of meta-learning: inner loops, prototypes, networks as pure functions."""

from metatransfer.functional.meta import (
    batching,
    compiled,
    gaussian,
    inputs,
    linear_systems,
    prototypes,
    replicas,
    ridge,
    svm,
    task_heads,
    threads,
    update_rules,
)
from metatransfer.functional.meta.batch_norm import batch_norm
from metatransfer.functional.meta.batching import *
from metatransfer.functional.meta.compiled import *
from metatransfer.functional.meta.gaussian import *
from metatransfer.functional.meta.inner_loop import (
    InnerLoopResult,
    adapt_tasks,
    all_finite,
    first_divergence,
    inner_loop,
)
from metatransfer.functional.meta.inputs import *
from metatransfer.functional.meta.linear_systems import *
from metatransfer.functional.meta.prototypes import *
from metatransfer.functional.meta.replicas import *
from metatransfer.functional.meta.ridge import *
from metatransfer.functional.meta.stateless import BatchNormPolicy, Forward, batch_norm_layers, stateless
from metatransfer.functional.meta.svm import *
from metatransfer.functional.meta.task_heads import *
from metatransfer.functional.meta.threads import *
from metatransfer.functional.meta.update_rules import *

# of the modules that are named like one of their functions
__all__ = ["InnerLoopResult", "adapt_tasks", "all_finite", "batch_norm", "first_divergence", "inner_loop"]
__all__ += ["BatchNormPolicy", "Forward", "batch_norm_layers", "stateless"]
__all__ += batching.__all__
__all__ += compiled.__all__
__all__ += gaussian.__all__
__all__ += inputs.__all__
__all__ += linear_systems.__all__
__all__ += prototypes.__all__
__all__ += replicas.__all__
__all__ += ridge.__all__
__all__ += svm.__all__
__all__ += task_heads.__all__
__all__ += threads.__all__
__all__ += update_rules.__all__
