"""Methods trained on labelled samples of all training classes, and tested on episodes."""

from metatransfer.methods.supervised.baseline_plus_plus import BaselinePlusPlusModule
from metatransfer.methods.supervised.pretrain import PretrainModule

__all__ = ["BaselinePlusPlusModule", "PretrainModule"]
