"""A low-rank policy in the manner of LoRA (Hu et al. 2021, 2106.09685), from public names alone."""

from functools import partial

import torch
from lightning.pytorch import Trainer
from torch import nn

from metatransfer import MLP, Arrays, FineTuneModule, FineTunePolicy, LabelledDataModule


class LowRankLinear(nn.Module):
    """A linear layer with a trainable product of two small matrices beside its weight."""

    def __init__(self, linear, rank):
        super().__init__()
        self.base = linear
        self.down = nn.Parameter(torch.randn(rank, linear.in_features) / rank)
        self.up = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x):
        return self.base(x) + x @ self.down.T @ self.up.T

    def merged(self):
        """One plain layer that gives the same answers."""
        with torch.no_grad():
            self.base.weight += self.up @ self.down
        return self.base


class LowRank(FineTunePolicy):
    """Trains the head and a low-rank change of every linear layer of the backbone.

    Args:
        rank: of the change.
    """

    def __init__(self, rank: int = 2) -> None:
        super().__init__()
        self.rank = rank

    def prepare(self, network):
        for name, layer in list(network.backbone.named_modules()):
            if isinstance(layer, nn.Linear):
                network.backbone.set_submodule(name, LowRankLinear(layer, self.rank))

    def trains(self, parameter, epoch):
        return parameter.below_head == 0 or parameter.name.rpartition(".")[2] in ("down", "up")


def merge(network):
    for name, layer in list(network.named_modules()):
        if isinstance(layer, LowRankLinear):
            network.set_submodule(name, layer.merged())


def test_trained_saved_loaded_and_merged(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(60, 4)
    data = LabelledDataModule(Arrays.from_arrays(x, (x[:, 0] > 0).long()), batch_size=20)
    backbone = MLP((4,), (8, 6))
    module = FineTuneModule(
        backbone, num_classes=2, policy=LowRank(rank=2), optimizer=partial(torch.optim.AdamW, lr=0.05)
    )
    before = {name: value.clone() for name, value in module.named_parameters()}
    trainable = {name for name, value in module.named_parameters() if value.requires_grad}
    assert {name.rpartition(".")[2] for name in trainable if name.startswith("backbone")} == {"down", "up"}
    trainer = Trainer(
        max_epochs=10, logger=False, enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
        default_root_dir=tmp_path, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    changed = {name for name, value in module.named_parameters() if not torch.equal(value, before[name])}
    assert changed == trainable
    module.eval()
    assert (module(x).argmax(1) == (x[:, 0] > 0)).float().mean() > 0.8
    trainer.save_checkpoint(tmp_path / "low_rank.ckpt")
    loaded = FineTuneModule.load_from_checkpoint(tmp_path / "low_rank.ckpt", weights_only=True).eval()
    assert isinstance(loaded.policies[0], LowRank)
    assert torch.equal(loaded(x), module(x))
    expected = loaded(x)
    merge(loaded.backbone)
    assert not any(isinstance(part, LowRankLinear) for part in loaded.modules())
    torch.testing.assert_close(loaded(x), expected)


def test_a_policy_decides_by_parameter():
    class BiasOnly(FineTunePolicy):
        """BitFit (Ben Zaken et al. 2021, 2106.10199)."""

        def trains(self, parameter, epoch):
            return parameter.below_head == 0 or parameter.name.endswith(".bias")

        def lr_scale(self, parameter):
            return 0.5 if parameter.name == "layers.1.bias" else 1.0

    module = FineTuneModule(MLP((4,), (8, 6), norm=True), num_classes=2, policy=BiasOnly())
    frozen = {name for name, value in module.backbone.named_parameters() if not value.requires_grad}
    assert frozen == {"layers.1.weight", "layers.2.weight", "layers.4.weight", "layers.5.weight"}
    assert module.train().backbone.layers[2].training  # something of its layer trains
    groups = {id(value): group for group in module.parameter_groups() for value in group["params"]}
    assert len(groups) == len(list(module.parameters()))
    assert groups[id(module.backbone.layers[1].bias)]["lr_scale"] == 0.5
    assert groups[id(module.backbone.layers[2].bias)]["lr_scale"] == 1.0
