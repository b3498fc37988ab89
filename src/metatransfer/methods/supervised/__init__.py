"""Methods trained on labelled samples of all training classes, and tested on episodes."""

from metatransfer.methods.supervised.pretrain import PretrainModule

__all__ = ["PretrainModule"]
