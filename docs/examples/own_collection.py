"""Samples of your own: one class with one function, served as episodes and as labelled batches."""

from functools import partial

import torch
from lightning.pytorch import Trainer, seed_everything

from metatransfer import (
    MLP,
    Collection,
    Episodes,
    EpisodicDataModule,
    FineTuneModule,
    LabelledDataModule,
    ProtoNetModule,
    Task,
    TensorSource,
)


class Waves(Collection):
    """Sine waves of 20 frequencies with noise, 30 of each: signals of 64 values."""

    def parts(self) -> dict[str, TensorSource]:
        """All waves; they are not divided into splits."""
        generator = torch.Generator().manual_seed(0)
        frequency = torch.arange(1, 21).repeat_interleave(30)
        phase = torch.rand(600, 1, generator=generator)
        time = torch.linspace(0, 6.3, 64)
        signals = torch.sin(frequency[:, None] * time + phase) + 0.1 * torch.randn(600, 64, generator=generator)
        names = [f"{number} Hz" for number in range(1, 21)]
        return {"all": TensorSource(signals, (frequency - 1).numpy(), names, name="waves")}


def main(epochs: int = 5) -> tuple[float, float]:
    """Returns the test accuracy on episodes of new frequencies, and on new waves of known frequencies."""
    seed_everything(0)
    adam = partial(torch.optim.Adam, lr=0.003)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }

    episodes = EpisodicDataModule(Waves(), task=Task(num_ways=3, num_shots=5), episodes=Episodes(train=400, val=50))
    few_shot = ProtoNetModule(MLP(in_shape=(64,), hidden=(128, 64)), optimizer=adam)
    trainer = Trainer(max_epochs=epochs, **quiet)
    trainer.fit(few_shot, datamodule=episodes)
    new_classes = trainer.test(few_shot, datamodule=episodes, verbose=False)[0]["test/accuracy"]

    batches = LabelledDataModule(Waves(), batch_size=32)
    classifier = FineTuneModule(MLP(in_shape=(64,), hidden=(128, 64)), num_classes=20, optimizer=adam)
    trainer = Trainer(max_epochs=8 * epochs, **quiet)
    trainer.fit(classifier, datamodule=batches)
    known_classes = trainer.test(classifier, datamodule=batches, verbose=False)[0]["test/accuracy"]
    return new_classes, known_classes


if __name__ == "__main__":
    new_classes, known_classes = main()
    print(f"New frequencies, 3-way 5-shot: {100 * new_classes:.0f} %; guessing gives 33 %.")
    print(f"Known frequencies: {100 * known_classes:.0f} %; guessing gives 5 %.")
