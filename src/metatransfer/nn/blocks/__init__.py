"""Parts of networks and methods."""

from metatransfer.nn.blocks.added_layers import (
    AddedLayer,
    BottleneckLayer,
    LowRankLayer,
    ResidualConvLayer,
    merge_added,
    remove_added,
)
from metatransfer.nn.blocks.adversarial import DomainDiscriminator, MultilinearMap, reverse_gradient
from metatransfer.nn.blocks.causal import CausalAttention, CausalDense, CausalLayer
from metatransfer.nn.blocks.context_transformer import ContextTransformer
from metatransfer.nn.blocks.coordinates import CoordinateNetwork
from metatransfer.nn.blocks.domain_norm import DomainBatchNorm
from metatransfer.nn.blocks.full_context import FullContextEmbedding
from metatransfer.nn.blocks.gated_update import GatedUpdate
from metatransfer.nn.blocks.learned_tensors import LearnedTensors
from metatransfer.nn.blocks.least_recently_used import LeastRecentlyUsedMemory, MemoryState
from metatransfer.nn.blocks.memory_hops import MemoryHops, attend
from metatransfer.nn.blocks.neural_turing_machine import Addressing, NeuralTuringMachine, TuringState, address
from metatransfer.nn.blocks.recurrent import LSTM, Recurrent, lstm_step
from metatransfer.nn.blocks.relation import RelationHead
from metatransfer.nn.blocks.set_attention import SetAttention
from metatransfer.nn.blocks.story_memory import StoryMemory, Tying, position_encoding
from metatransfer.nn.blocks.zero_linear import ZeroLinear

__all__ = [
    "LSTM",
    "AddedLayer",
    "Addressing",
    "BottleneckLayer",
    "CausalAttention",
    "CausalDense",
    "CausalLayer",
    "ContextTransformer",
    "CoordinateNetwork",
    "DomainBatchNorm",
    "DomainDiscriminator",
    "FullContextEmbedding",
    "GatedUpdate",
    "LearnedTensors",
    "LeastRecentlyUsedMemory",
    "LowRankLayer",
    "MemoryHops",
    "MemoryState",
    "MultilinearMap",
    "NeuralTuringMachine",
    "Recurrent",
    "RelationHead",
    "ResidualConvLayer",
    "SetAttention",
    "StoryMemory",
    "TuringState",
    "Tying",
    "ZeroLinear",
    "address",
    "attend",
    "lstm_step",
    "merge_added",
    "position_encoding",
    "remove_added",
    "reverse_gradient",
]
