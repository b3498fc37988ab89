"""Training again under the same budget: twins, seeds, paired comparisons."""
