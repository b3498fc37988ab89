"""Classifiers that are fitted to features."""
