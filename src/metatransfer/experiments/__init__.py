"""Comparisons on the same budget: twins, seeds, paired differences."""
