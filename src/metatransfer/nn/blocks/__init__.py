"""Parts of networks and methods."""

from metatransfer.nn.blocks.adversarial import DomainDiscriminator, MultilinearMap, reverse_gradient
from metatransfer.nn.blocks.causal import CausalAttention, CausalDense, CausalLayer
from metatransfer.nn.blocks.domain_norm import DomainBatchNorm
from metatransfer.nn.blocks.full_context import FullContextEmbedding
from metatransfer.nn.blocks.learned_tensors import LearnedTensors

__all__ = [
    "CausalAttention",
    "CausalDense",
    "CausalLayer",
    "DomainBatchNorm",
    "DomainDiscriminator",
    "FullContextEmbedding",
    "LearnedTensors",
    "MultilinearMap",
    "reverse_gradient",
]
