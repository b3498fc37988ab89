"""Methods that read sequences into a memory."""

from metatransfer.methods.memory.mann import MANNModule
from metatransfer.methods.memory.ntm import NTMModule
from metatransfer.methods.memory.sequence import SequenceModule
from metatransfer.methods.memory.snail import SNAILModule

__all__ = ["MANNModule", "NTMModule", "SNAILModule", "SequenceModule"]
