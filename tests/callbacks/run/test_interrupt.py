"""The end of a fit; signals are tested where runs are resumed."""

import lightning.pytorch as pl
import torch

from metatransfer import MLP, FineTuneModule, LabelledDataModule, TensorSource
from metatransfer.callbacks import FinishBatch
from serving_by_names import Given


class Epochs(pl.Callback):
    """Records the epochs that end with a validation."""

    def __init__(self):
        self.validated = []

    def on_validation_end(self, trainer, pl_module):
        self.validated.append(trainer.current_epoch)


def test_every_fit_of_a_trainer_that_is_short_ends_with_a_validation():
    source = TensorSource(torch.rand(60, 5), torch.arange(60) % 3, "abc", "some")
    seen, module = Epochs(), FineTuneModule(MLP((5,), (4,)), num_classes=3)
    trainer = pl.Trainer(
        max_epochs=2, check_val_every_n_epoch=5, num_sanity_val_steps=0, accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[FinishBatch(), seen],
    )  # fmt: skip
    for end in (2, 4, 8):
        trainer.fit_loop.max_epochs = end
        trainer.fit(module, LabelledDataModule(Given({"all": source})))
        assert trainer.check_val_every_n_epoch == 5
    assert seen.validated == [1, 3, 4]  # the last fit validates as asked, after the fifth epoch
