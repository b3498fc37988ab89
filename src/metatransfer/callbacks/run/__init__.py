"""Callbacks that every run has: checkpoints, report, interruption."""
