"""LoRA and adapters: what trains, merging, the files of peft, and wrong targets."""

from __future__ import annotations

import importlib.util
import json
from functools import partial

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import messages
from metatransfer import (
    Adapter,
    BitFit,
    Conv4,
    FineTuneModule,
    HuggingFaceEncoder,
    LabelledBatch,
    LoRA,
    TimmBackbone,
    Tokens,
    TorchvisionBackbone,
    UserError,
)
from metatransfer.methods.exported_file import Answers
from metatransfer.nn import Backbone
from metatransfer.nn.blocks import AddedLayer, LowRankLayer, ResidualConvLayer
from metatransfer.nn.layers import layers_of


class Texts(Backbone):
    """Two blocks with the names of a BERT."""

    def __init__(self, heads: int = 2) -> None:
        super().__init__()
        self.out_features, self.in_shape = 8, (4, 8)
        self.encoder = nn.ModuleList([Block(heads) for _ in range(2)])

    def forward(self, x):
        for block in self.encoder:
            x = block(x)
        return x.mean(1)


class Block(nn.Module):
    def __init__(self, heads):
        super().__init__()
        self.query, self.value = nn.Linear(8, 8), nn.Linear(8, 8)
        self.attention = nn.MultiheadAttention(8, heads, batch_first=True)
        self.intermediate = nn.Linear(8, 16)
        self.output = nn.Module()
        self.output.dense = nn.Linear(16, 8)
        self.norm = nn.LayerNorm(8)

    def forward(self, x):
        x = x + self.attention(self.query(x), x, self.value(x))[0]
        return self.norm(x + self.output.dense(self.intermediate(x).relu()))


IMAGES = partial(Conv4, image_size=16, hidden_channels=8)


def module(policy, backbone=None, **arguments):
    torch.manual_seed(0)
    return FineTuneModule(backbone or IMAGES(), 3, policy=policy, **arguments)


def trainable(method):
    return {name for name, value in method.backbone.named_parameters() if value.requires_grad}


def moved(method):
    """The method in float64 after its trained weights were changed at random."""
    method = method.double()
    with torch.no_grad():
        for value in method.parameters():
            if value.requires_grad:
                value.add_(0.3 * torch.randn_like(value))
    return method.eval()


def samples(method, count=5):
    return torch.rand(count, *method.backbone.in_shape, dtype=torch.float64)


def mistake(match, build):
    with pytest.raises(UserError, match=match) as caught:
        build()
    messages.keep(str(caught.value))


@pytest.mark.parametrize("network", [IMAGES, Texts])
@pytest.mark.parametrize(
    "build",
    [
        lambda: LoRA(2),
        lambda: Adapter(4),
        lambda: LoRA(0),
        lambda: LoRA(2, dropout=0.5, targets=r".*(query|layers\.4)"),
    ],
    ids=["LoRA", "Adapter", "rank 0", "some"],
)
def test_every_part_that_trains_learns_and_nothing_else(build, network):
    policy = build()
    method = module(policy, network())
    before = {name: value.clone() for name, value in method.named_parameters()}
    expected = {name for name in before if "lora_" in name or name.startswith("head")}
    if isinstance(policy, Adapter):
        added = ("adapter", "up", "down", "norm", "layers.1.", "layers.5.", "layers.9.", "layers.13.", "head")
        expected = {name for name in before if any(part in name for part in added)}
    assert {name for name, value in method.named_parameters() if value.requires_grad} == expected
    optimizer = torch.optim.SGD(method.parameters(), lr=0.5)
    for _ in range(2):  # B of LoRA is 0 at first, so that A waits for a step
        loss = method.train().training_loss(LabelledBatch(samples(method).float(), torch.arange(5) % 3))[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    changed = {name for name, value in method.named_parameters() if not torch.equal(value, before[name])}
    assert changed == expected


def test_rank_0_is_the_identity():
    plain = IMAGES()
    names = set(plain.state_dict())
    method = module(LoRA(0), plain)
    assert set(method.backbone.state_dict()) == names
    assert trainable(method) == set()


@pytest.mark.parametrize(
    ("policy", "network"),
    [
        (LoRA(2), IMAGES),
        (LoRA(2), Texts),
        (LoRA(3, alpha=5, targets=["out_proj", "query", "dense"]), Texts),
        (Adapter(), IMAGES),
    ],
    ids=["images", "texts", "attention", "adapter"],
)
def test_merging_changes_no_answer(policy, network):
    method = moved(module(policy, network()))
    x = samples(method)
    start = module(None, network()).double().eval()
    merged = method.merged()
    assert not any(isinstance(part, AddedLayer) for part in merged.modules())
    assert set(merged.state_dict()) == set(start.state_dict())
    torch.testing.assert_close(merged(x), method(x), rtol=1e-9, atol=1e-9)
    assert any(isinstance(part, AddedLayer) for part in method.modules())  # the method itself is as it was
    assert all(value.requires_grad for value in merged.parameters())
    start.load_state_dict(merged.state_dict())
    torch.testing.assert_close(start(x), method(x), rtol=1e-9, atol=1e-9)


def test_bottlenecks_cannot_be_merged():
    mistake("not linear", module(Adapter(), Texts()).merged)


def test_layers_are_listed_and_numbered_as_before():
    plain = IMAGES()
    names = [layer.name for layer in layers_of(plain)]
    for policy in (LoRA(2), Adapter()):
        method = module(policy, IMAGES())
        assert [layer.name for layer in method.layers[:-1]] == names


def test_the_default_takes_layers_that_are_larger_than_their_change():
    method = module(LoRA(5))
    found = [name for name, part in method.backbone.named_modules() if isinstance(part, LowRankLayer)]
    assert found == [
        "layers.4",
        "layers.8",
        "layers.12",
    ]  # the first one has 8 x 9 weights, and 4 * (8 + 9) in a change
    assert isinstance(module(LoRA(5, targets=["layers.0"])).backbone.layers[0], LowRankLayer)


def test_adapters_of_both_kinds_of_networks():
    images, texts = module(Adapter()).backbone, module(Adapter(4), Texts()).backbone
    assert [isinstance(images.layers[place], ResidualConvLayer) for place in (0, 4, 8, 12)] == [True] * 4
    found = [name for name, part in texts.named_modules() if isinstance(part, AddedLayer)]
    assert found == ["encoder.0.output.dense", "encoder.1.output.dense"]


def test_a_restart_draws_what_was_added_and_a_twin_from_scratch_is_without_it():
    method = moved(module(LoRA(2)))
    one, two = method.restarted(1), method.restarted(2)
    layer = "layers.4.lora_A.weight"
    first, second = (dict(twin.backbone.named_parameters()) for twin in (one, two))
    assert not torch.equal(first[layer], second[layer])
    assert not first["layers.4.lora_B.weight"].any()
    assert torch.equal(first["layers.4.base.weight"], second["layers.4.base.weight"])
    twin = method.from_scratch(0)
    assert set(twin.state_dict()) == set(module(None).state_dict())
    assert all(value.requires_grad for value in twin.parameters())


class Odd(Backbone):
    """Layers that have no low-rank change."""

    def __init__(self) -> None:
        super().__init__()
        self.out_features, self.in_shape = 4, (4,)
        self.embedding, self.grouped = nn.Embedding(3, 4), nn.Conv1d(4, 4, 1, groups=2)
        self.norm, self.linear = nn.LayerNorm(4), nn.Linear(4, 4, bias=False)

    def forward(self, x):
        return self.linear(x)


class Plain(Backbone):
    """A network without biases and with one small layer."""

    def __init__(self) -> None:
        super().__init__()
        self.out_features, self.in_shape, self.linear = 4, (4,), nn.Linear(4, 4, bias=False)

    def forward(self, x):
        return self.linear(x)


@pytest.mark.parametrize(
    ("match", "policy", "backbone"),
    [
        ("'norm' is of the type LayerNorm", LoRA(1, targets=["norm"]), Odd),
        ("'embedding' is of the type Embedding", LoRA(1, targets="embedding"), Odd),
        ("without groups", LoRA(1, targets=["grouped"]), Odd),
        ("rank=5 is above the size of layer 'linear'.*4 x 4", LoRA(5, targets=["linear"]), Odd),
        ("of rank 5: lower rank", LoRA(5), Odd),
        ("'liner'. Did you mean linear", LoRA(1, targets=["liner"]), Odd),
        ("whole name that matches 'near'", LoRA(1, targets="near"), Odd),
        ("regular expression", LoRA(1, targets="(near"), Odd),
        ("is called ''", LoRA(1, targets=[]), Odd),
        ("name targets", Adapter(), Plain),
        ("'encoder.0.attention.out_proj' is of the type .*MultiheadAttention", Adapter(targets=["out_proj"]), Texts),
        ("no biases", BitFit(), Plain),
    ],
)
def test_wrong_targets(match, policy, backbone):
    mistake(match, lambda: module(policy, backbone()))


@pytest.mark.parametrize("arguments", [{"rank": -1}, {"rank": 1.5}, {"alpha": 0}, {"dropout": 1.0}])
def test_wrong_numbers(arguments):
    mistake(next(iter(arguments)), lambda: LoRA(**arguments))


# ---- the files of peft


def write(folder, names=("query",), rank=2, prefix="base_model.model.", width=8, **config):
    """A folder as peft writes it."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(1)
    tensors = {f"{prefix}classifier.weight": torch.zeros(3, 8)}
    for name in (f"encoder.{block}.{name}" for block in range(2) for name in names):
        tensors[f"{prefix}{name}.lora_A.weight"] = torch.randn(rank, width)
        tensors[f"{prefix}{name}.lora_B.weight"] = torch.randn(8, rank)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 3, "lora_dropout": 0.25, "bias": "none"} | config
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.mark.parametrize("prefix", ["base_model.model.", "base_model.model.bert."])
def test_files_of_peft_load(tmp_path, prefix):
    folder = write(tmp_path / "adapter", ("query", "value"), prefix=prefix, use_rslora=True)
    plain = Texts().double()
    state = plain.state_dict()
    method = module(LoRA(adapter=folder), plain).double().eval()
    assert trainable(method) == {
        f"encoder.{block}.{name}.lora_{part}.weight"
        for block in range(2)
        for name in ("query", "value")
        for part in "AB"
    }
    layer = method.backbone.encoder[0].query
    assert layer.dropout.p == 0.25
    expected = state["encoder.0.query.weight"] + 3 / 2**0.5 * (layer.lora_B.weight @ layer.lora_A.weight)
    torch.testing.assert_close(method.merged().backbone.encoder[0].query.weight, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("match", "options"),
    [
        (r"lora_A of layer 'encoder.0.query' has the shape \(2, 6\), but here it is \(2, 8\)", {"width": 6}),
        ("no layer 'encoder.0.key'", {"names": ("key",)}),
        ("use_dora=True", {"use_dora": True}),
        ("peft_type='IA3'", {"peft_type": "IA3"}),
        ("JSON of a LoRA adapter", {"r": 0}),
        ("lacks some", {"names": ()}),
    ],
)
def test_files_for_another_network(tmp_path, monkeypatch, match, options):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "adapter", **options)
    mistake(match, lambda: module(LoRA(adapter="adapter"), Texts()))


def test_a_folder_without_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mistake("adapter_config.json' does not exist", lambda: LoRA(adapter="missing"))


@pytest.mark.slow  # peft takes seconds to import
@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")
@pytest.mark.parametrize("kind", ["texts", "images"])
def test_answers_gradients_and_files_are_those_of_peft(tmp_path, kind):
    """The changes are drawn at random, written by peft and loaded here: answers, gradients and merged answers agree."""
    import peft

    network = Texts if kind == "texts" else IMAGES
    targets = ["query", "value", "intermediate"] if kind == "texts" else ["layers.4", "layers.8"]
    torch.manual_seed(3)
    state = network().state_dict()
    plain, own = network(), network()
    plain.load_state_dict(state)
    own.load_state_dict(state)
    config = peft.LoraConfig(r=2, lora_alpha=6, lora_dropout=0.0, target_modules=targets, init_lora_weights=False)
    theirs = peft.get_peft_model(plain, config)
    theirs.save_pretrained(tmp_path)
    method = module(LoRA(adapter=str(tmp_path)), own).double()
    theirs = theirs.double()
    assert method.policies[0].rank == 2
    x = samples(method)
    for network_mode in ("eval", "train"):
        expected, found = (getattr(one, network_mode)()(x) for one in (theirs, method.backbone))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    expected.square().sum().backward()
    found.square().sum().backward()
    gradients = {name: value.grad for name, value in theirs.named_parameters() if value.grad is not None}
    ours = {name: value.grad for name, value in method.backbone.named_parameters() if value.grad is not None}
    assert len(gradients) == len(ours) == 2 * len([one for one in method.modules() if isinstance(one, LowRankLayer)])
    for name, value in ours.items():
        same = f"base_model.model.{name.replace('.weight', '.default.weight')}"
        torch.testing.assert_close(value, gradients[same], rtol=1e-9, atol=1e-9)
    merged = theirs.eval().merge_and_unload()
    torch.testing.assert_close(method.eval().merged().backbone(x), merged(x), rtol=1e-9, atol=1e-9)


# ---- networks of other libraries


def bert():
    config = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return HuggingFaceEncoder("none", weights=None, config={**config, "intermediate_size": 64, "vocab_size": 30})


NETWORKS = {
    "resnet": lambda: TorchvisionBackbone("resnet18"),
    "efficientnet": lambda: TimmBackbone("tf_efficientnet_lite0"),
    "vit": lambda: TimmBackbone("vit_tiny_patch16_224", resize=224),
    "convnext": lambda: TimmBackbone("convnext_atto"),
    "bert": bert,
}


@pytest.mark.slow  # large networks
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("policy", [LoRA, Adapter, BitFit])
def test_networks_of_other_libraries(network, policy):
    """Everything that trains gets a gradient, also where a network reads weights instead of calling a layer."""
    method = moved(module(policy(), NETWORKS[network]()))
    total = sum(value.numel() for value in method.backbone.parameters())
    trained = sum(value.numel() for value in method.backbone.parameters() if value.requires_grad)
    assert 0 < trained < 0.5 * total
    x = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    if network == "bert":
        x = Tokens(torch.randint(1, 30, (2, 6)), torch.ones(2, 6, dtype=torch.long))
    method.train().training_loss(LabelledBatch(x, torch.tensor([0, 1])))[0].backward()
    assert [name for name, value in method.named_parameters() if value.requires_grad and value.grad is None] == []
    method.eval()
    if policy is LoRA:
        with torch.no_grad():
            torch.testing.assert_close(method.merged()(x), method(x), rtol=1e-8, atol=1e-8)


def test_what_is_exported_is_merged():
    method = moved(module(LoRA(2)))
    answers = Answers(method)
    assert not any(isinstance(part, AddedLayer) for part in answers.modules())
    x = samples(method)
    torch.testing.assert_close(answers.module(x), method(x), rtol=1e-9, atol=1e-9)
