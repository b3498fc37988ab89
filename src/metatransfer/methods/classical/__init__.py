"""Classical strategies, on the same data and with the same report as the networks."""

from metatransfer.methods.classical.tfidf_svm import TfidfSVMModule

__all__ = ["TfidfSVMModule"]
