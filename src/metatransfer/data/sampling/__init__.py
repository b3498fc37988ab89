"""How samples become batches: random streams, task shapes, divisions, samplers, augmentation, the one loader."""
