"""Functions of domain adaptation: discrepancies, distances, importance weights, subspaces, transport, validation."""

from metatransfer.functional.domain import discrepancy, distance, importance, subspace, transport, validation

__all__ = ["discrepancy", "distance", "importance", "subspace", "transport", "validation"]
