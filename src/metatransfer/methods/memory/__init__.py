"""Methods that read sequences into a memory."""

from metatransfer.methods.memory.snail import SNAILModule

__all__ = ["SNAILModule"]
