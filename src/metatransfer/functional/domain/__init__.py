"""Functions of domain adaptation: discrepancies, distances, importance weights, subspaces, validation scores."""

from metatransfer.functional.domain import discrepancy, distance, importance, subspace, validation

__all__ = ["discrepancy", "distance", "importance", "subspace", "validation"]
