"""Fine-tune a pretrained network with ten labels per class, beside the same network trained from scratch."""

from functools import partial

import torch
from lightning.pytorch import Trainer, seed_everything

from metatransfer import Conv4, Digits, Division, FineTuneModule, GradualUnfreezing, LabelledDataModule


def test_accuracy(weights: str | None, epochs: int) -> float:
    """Trains on 100 handwritten digits and returns the accuracy on about 900 others.

    Args:
        weights: ``"glyphs"`` for a network that was pretrained on typeset characters, ``None`` for random weights.
        epochs: of the training.
    """
    seed_everything(0)
    data = LabelledDataModule(Digits(), batch_size=25, labels_per_class=10, division=Division(test_fraction=0.5))
    module = FineTuneModule(
        Conv4(weights=weights),
        num_classes=10,
        policy=GradualUnfreezing(schedule=[epochs // 3, epochs // 2]) if weights else None,
        optimizer=partial(torch.optim.AdamW, lr=0.003),
    )
    trainer = Trainer(
        max_epochs=epochs,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=data)
    return trainer.test(module, datamodule=data, verbose=False)[0]["test/accuracy"]


def main(epochs: int = 30) -> tuple[float, float]:
    """Returns the accuracy from pretrained and from random weights."""
    return test_accuracy("glyphs", epochs), test_accuracy(None, epochs)


if __name__ == "__main__":
    pretrained, scratch = main()
    print(f"Pretrained: {100 * pretrained:.1f} %. From scratch: {100 * scratch:.1f} %.")
