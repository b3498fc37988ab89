"""In-context learning: one network reads the support set and answers the queries."""

from metatransfer.methods.in_context.cnp import CNPModule
from metatransfer.methods.in_context.in_context import InContextModule
from metatransfer.methods.in_context.tnp_d import TNPDModule

__all__ = ["CNPModule", "InContextModule", "TNPDModule"]
