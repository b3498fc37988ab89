"""Networks and parts of networks."""

from metatransfer.nn import backbones, blocks, heads, layers, weights
from metatransfer.nn.backbones import *
from metatransfer.nn.blocks import *
from metatransfer.nn.heads import *
from metatransfer.nn.layers import *
from metatransfer.nn.weights import *

__all__ = []
__all__ += backbones.__all__
__all__ += blocks.__all__
__all__ += heads.__all__
__all__ += layers.__all__
__all__ += weights.__all__
