"""Functions of meta-learning: inner loops, prototypes, networks without state."""
