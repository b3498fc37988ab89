"""Labels of typeset digits, answers for handwritten ones: DANN beside the same network without adaptation."""

from functools import partial

import torch
from lightning.pytorch import Trainer, seed_everything

from metatransfer import DANNModule, Digits, DomainDataModule, LeNet, SourceOnlyModule, TypesetDigits


def main(epochs: int = 20) -> dict[str, float]:
    """Returns the accuracy on handwritten digits, whose labels are used for the test only, by method."""
    accuracy = {}
    for kind in (SourceOnlyModule, DANNModule):
        seed_everything(0)
        data = DomainDataModule(sources={"typeset": TypesetDigits()}, targets={"handwritten": Digits()})
        module = kind(
            LeNet(channels=(16, 32), hidden_size=64, dropout=0.5),
            num_classes=10,
            optimizer=partial(torch.optim.Adam, lr=0.001),
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
        accuracy[kind.__name__] = trainer.test(module, datamodule=data, verbose=False)[0]["test/accuracy"]
    return accuracy


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {100 * value:.1f} % of the handwritten digits")
