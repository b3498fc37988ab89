"""Functions of domain adaptation: discrepancies, distances, importance weights, subspaces."""
