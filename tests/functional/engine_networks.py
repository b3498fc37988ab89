"""Networks to hold the engine to: one for every kind of layer that could be differentiated wrongly, in float64."""

import torch
from torch import nn

from metatransfer import ResNet12

TASKS, SHOTS, QUERIES, WAYS = 3, 6, 5, 3


class Residual(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x + self.inner(x)


class Tied(nn.Module):
    """One weight serves two layers, as in an autoencoder or a language model."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.out = nn.Linear(8, WAYS)

    def forward(self, x):
        return self.out(torch.tanh(self.second(torch.tanh(self.first(x.flatten(1))))))


class Embedded(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.norm = nn.LayerNorm(6)
        self.out = nn.Linear(6, WAYS)

    def forward(self, x):
        return self.out(torch.tanh(self.norm(self.table(x).mean(1))))


class Attentive(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(1, 4)
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, activation=torch.tanh, batch_first=True)
        self.out = nn.Linear(4, WAYS)

    def forward(self, x):
        return self.out(self.layer(self.embed(x.flatten(1, 2)[:, :, :1])).mean(1))


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.rnn = kind(6, 4, batch_first=True)
        self.out = nn.Linear(4, WAYS)

    def forward(self, x):
        return self.out(self.rnn(x.squeeze(1))[0][:, -1])


class PartlyUsed(nn.Module):
    """A branch of the network that no sample reaches, as in networks with several heads."""

    def __init__(self):
        super().__init__()
        self.used = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, WAYS))
        self.idle = nn.Linear(8, WAYS)

    def forward(self, x):
        return self.used(x)


def conv(norm, *, smooth=True, dropout=None):
    act, pool = (nn.Tanh(), nn.AvgPool2d(2)) if smooth else (nn.ReLU(), nn.MaxPool2d(2))
    layers = [nn.Conv2d(1, 4, 3, padding=1), norm(), act, *([dropout] if dropout else []), pool]
    layers += [nn.Conv2d(4, 4, 3, padding=1), norm(), act, nn.Flatten(), nn.Linear(36, WAYS)]
    return nn.Sequential(*layers)


def frozen():
    net = conv(lambda: nn.BatchNorm2d(4))
    net[0].weight.requires_grad_(False)
    net[1].bias.requires_grad_(False)
    return net


NETWORKS = {
    "batch_norm": lambda: conv(lambda: nn.BatchNorm2d(4)),
    "batch_norm_relu_maxpool": lambda: conv(lambda: nn.BatchNorm2d(4), smooth=False),
    "batch_norm_untracked": lambda: conv(lambda: nn.BatchNorm2d(4, track_running_stats=False)),
    "batch_norm_not_affine": lambda: conv(lambda: nn.BatchNorm2d(4, affine=False)),
    "batch_norm_1d": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(36, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, WAYS)
    ),
    "instance_norm": lambda: conv(lambda: nn.InstanceNorm2d(4, affine=True)),
    "group_norm": lambda: conv(lambda: nn.GroupNorm(2, 4)),
    "layer_norm": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(36, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, WAYS)
    ),
    "dropout_zero": lambda: conv(lambda: nn.BatchNorm2d(4), dropout=nn.Dropout(0.0)),
    "residual": lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        Residual(nn.Sequential(nn.BatchNorm2d(4), nn.Tanh(), nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))),
        nn.Tanh(), nn.Flatten(), nn.Linear(144, WAYS),
    ),
    "tied": Tied,
    "frozen": frozen,
    "embedding": Embedded,
    "attention": Attentive,
    "resnet12": lambda: nn.Sequential(
        nn.ZeroPad2d(5), ResNet12(1, widths=(4, 4, 4, 4), dropout=0.0), nn.Linear(4, WAYS)
    ),
    "unused": PartlyUsed,
}  # fmt: skip


# these cannot be mapped over tasks
RECURRENT = {"lstm": lambda: Recurrent(nn.LSTM), "gru": lambda: Recurrent(nn.GRU)}


def build(name):
    torch.manual_seed(sum(map(ord, name)))
    net = (NETWORKS | RECURRENT)[name]().double().train()
    for layer in net.modules():  # a fresh affine map is 1 and 0: give it something to be wrong about
        if getattr(layer, "weight", None) is not None and "Norm" in type(layer).__name__:
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -0.5, 0.5)
    return net


def tasks(name, dtype=torch.float64):
    generator = torch.Generator().manual_seed(7)
    if name == "embedding":
        draw = lambda n: torch.randint(0, 11, (TASKS, n, 5), generator=generator)  # noqa: E731
    elif name == "tied":
        draw = lambda n: torch.randn(TASKS, n, 8, generator=generator, dtype=dtype)  # noqa: E731
    else:
        draw = lambda n: torch.randn(TASKS, n, 1, 6, 6, generator=generator, dtype=dtype)  # noqa: E731
    label = lambda n: torch.randint(0, WAYS, (TASKS, n), generator=generator)  # noqa: E731
    return draw(SHOTS), label(SHOTS), draw(QUERIES), label(QUERIES)


def trainable(net):
    return {name: value for name, value in net.named_parameters() if value.requires_grad}
