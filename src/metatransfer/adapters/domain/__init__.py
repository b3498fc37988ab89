"""Transformers that bring the features of two domains together."""
