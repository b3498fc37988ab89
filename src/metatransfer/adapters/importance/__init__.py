"""Weights of source samples by how likely they are in the target."""
