"""Parts of networks and methods."""

from metatransfer.nn.blocks.domain_discriminator import DomainDiscriminator
from metatransfer.nn.blocks.domain_norm import DomainBatchNorm
from metatransfer.nn.blocks.gradient_reversal import reverse_gradient
from metatransfer.nn.blocks.learned_tensors import LearnedTensors
from metatransfer.nn.blocks.multilinear_map import MultilinearMap

__all__ = ["DomainBatchNorm", "DomainDiscriminator", "LearnedTensors", "MultilinearMap", "reverse_gradient"]
