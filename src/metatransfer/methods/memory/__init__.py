"""Methods that read sequences, support sets or stories into a memory."""

from metatransfer.methods.memory.key_value_memory import KeyValueMemoryModule
from metatransfer.methods.memory.mann import MANNModule
from metatransfer.methods.memory.mem_n2n import MemN2NModule
from metatransfer.methods.memory.ntm import NTMModule
from metatransfer.methods.memory.sequence import SequenceModule
from metatransfer.methods.memory.snail import SNAILModule

__all__ = ["KeyValueMemoryModule", "MANNModule", "MemN2NModule", "NTMModule", "SNAILModule", "SequenceModule"]
