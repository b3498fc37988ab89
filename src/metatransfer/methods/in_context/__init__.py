"""In-context learning: one network reads the support set and answers the queries."""

from metatransfer.methods.in_context.in_context import InContextModule

__all__ = ["InContextModule"]
