"""torchvision's networks as backbones: features, weights in the local hub folder, and what is refused."""

import copy
import hashlib
import io
import pickle
import re
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import torchvision
from torch import nn

from metatransfer import ProtoNetModule, UserError
from metatransfer.nn.backbones import image_backbone, torchvision_backbone
from metatransfer.nn.backbones.torchvision_backbone import TorchvisionBackbone
from metatransfer.nn.layers import layers_of
from metatransfer.nn.weights import no_weight_files

SMALL = "shufflenet_v2_x0_5"


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch):
    """An empty hub folder, and no way out."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: pytest.fail("nothing may be fetched"))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def refused(build, *words):
    with pytest.raises(UserError) as caught:
        build()
    sentence = str(caught.value)
    assert all(word in sentence for word in words), sentence
    assert "\n" not in sentence
    assert sentence.endswith((".", "?"))


def plain(name):
    """The library's whole network, with weights and statistics that no initialisation gives."""
    settings = {"aux_logits": True, "init_weights": False} if name == "googlenet" else {}
    network = torchvision.models.get_model(name, weights=None, **settings).eval()
    with torch.no_grad():
        for key, value in network.state_dict().items():
            value += 0.01 if "weight" in key or "bias" in key else 0
    return network


def entry_of(name):
    return torchvision.models.get_model_weights(name)["DEFAULT"]


def stored(name, state, folder, monkeypatch, digest=None):
    """The file as it lies in the hub folder, under a name that carries the start of its checksum."""
    content = io.BytesIO()
    torch.save(state, content)
    digest = digest or hashlib.sha256(content.getvalue()).hexdigest()[:8]
    file = folder / f"{name}-{digest}.pth"
    file.write_bytes(content.getvalue())
    monkeypatch.setattr(entry_of(name).value, "url", f"https://download.example/models/{file.name}")
    return file


@pytest.mark.grid(3)
@pytest.mark.parametrize(
    ("name", "size", "features"),
    [
        ("resnet18", 32, 512), ("squeezenet1_0", 32, 512), ("mobilenet_v3_small", 32, 1024), ("googlenet", 48, 1024),
        ("inception_v3", 75, 2048), ("densenet121", 32, 1024), ("efficientnet_b0", 32, 1280), ("swin_t", 32, 768),
        ("convnext_tiny", 32, 768), (SMALL, 32, 1024), ("mnasnet0_5", 32, 1280), ("regnet_x_400mf", 32, 400),
    ],
)  # fmt: skip
def test_features_are_what_goes_into_the_classifier(name, size, features):
    net = TorchvisionBackbone(name, image_size=size)
    assert net.out_features == features
    assert net.train()(torch.rand(2, 3, size, size)).shape == (2, features)
    assert all(module.training for module in net.modules())
    named = [name for layer in layers_of(net) for name in layer.parameters]
    assert sorted(named) == sorted(name for name, _ in net.named_parameters())


@pytest.mark.parametrize("name", ["vit_b_16", "vgg11", "maxvit_t", "alexnet"])
def test_every_family_has_a_known_width(name):
    with torch.device("meta"):
        net = TorchvisionBackbone(name)
    assert net.out_features == {"vit_b_16": 768, "vgg11": 4096, "maxvit_t": 512, "alexnet": 4096}[name]
    assert net.fixed_size == (224 if "vit" in name else None)


@pytest.mark.grid(3)
@pytest.mark.parametrize("name", [SMALL, "squeezenet1_0", "mnasnet0_5", "googlenet", "densenet121"])
def test_weights_of_the_hub_folder(name, hub, monkeypatch):
    original = plain(name)
    # as torchvision's old files have it
    state = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", key): v for key, v in original.state_dict().items()
    }
    state = {key: value for key, value in state.items() if name != "densenet121" or "num_batches" not in key}
    file = stored(name, state, hub, monkeypatch)
    net = TorchvisionBackbone(name, weights="default").eval()
    own = original.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in net.network.state_dict().items())
    report = net.weights_report
    assert (report.file, report.sha256) == (file.name, hashlib.sha256(file.read_bytes()).hexdigest())
    assert set(report.dropped.values()) == {"not in the network"}
    assert all("num_batches_tracked" in key for key in report.new)
    # the classifier on top gives the library's answer, its own range of numbers included
    x = torch.rand(2, 3, 64, 64)
    mean, std = ((0.5, 0.5), (0.485, 0.229))[name != "googlenet"]
    assert net.mean.flatten()[0] == pytest.approx(mean)
    assert net.std.flatten()[0] == pytest.approx(std)
    head = [module for module in original.modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]
    seen = []
    head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        original((x - net.mean) / net.std)
        if name != "squeezenet1_0":  # there pooling comes after the classifier
            torch.testing.assert_close(net(x), seen[0])


def test_the_name_of_the_weights(hub, monkeypatch):
    stored(SMALL, plain(SMALL).state_dict(), hub, monkeypatch)
    for weights in ("IMAGENET1K_V1", "imagenet1k_v1", "DEFAULT"):
        assert TorchvisionBackbone(SMALL, weights=weights).weights_report
    with no_weight_files():  # as where a checkpoint is about to fill it
        assert TorchvisionBackbone(SMALL, weights="default").weights_report is None


def test_weights_that_are_not_there(hub):
    name = entry_of(SMALL).url.rpartition("/")[2]
    words = ["not on this machine", entry_of(SMALL).url, str(hub), name, "download: true"]
    refused(lambda: TorchvisionBackbone(SMALL, weights="default"), *words)


def test_fetching_only_where_it_is_asked_for(hub, monkeypatch):
    file = stored(SMALL, plain(SMALL).state_dict(), hub, monkeypatch)
    content = file.read_bytes()
    file.unlink()
    asked = []

    def fetch(url, target, **_):
        asked.append(url)
        Path(target).write_bytes(content)

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    assert TorchvisionBackbone(SMALL, weights="default", download=True).weights_report.file == file.name
    assert TorchvisionBackbone(SMALL, weights="default").weights_report.file == file.name
    assert asked == [entry_of(SMALL).url]
    file.unlink()

    def fail(*_, **__):
        raise OSError("no route")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    refused(lambda: TorchvisionBackbone(SMALL, weights="default", download=True), "could not be downloaded", "no route")


def test_damaged_weights(hub, monkeypatch):
    state = plain(SMALL).state_dict()
    stored(SMALL, state, hub, monkeypatch, digest="0" * 8)
    refused(lambda: TorchvisionBackbone(SMALL, weights="default"), "sha256", "00000000", "damaged", "delete it")
    stored(SMALL, {key: value for key, value in state.items() if key != "conv1.0.weight"}, hub, monkeypatch)
    refused(
        lambda: TorchvisionBackbone(SMALL, weights="default"),
        "does not fit shufflenet",
        "conv1.0.weight",
        "is missing or of",
    )
    stored(SMALL, {**state, "conv1.0.weight": torch.zeros(3)}, hub, monkeypatch)
    refused(lambda: TorchvisionBackbone(SMALL, weights="default"), "conv1.0.weight", "of another shape")
    stored(SMALL, {**state, "conv1.0.weight": state["conv1.0.weight"] * torch.nan}, hub, monkeypatch)
    refused(lambda: TorchvisionBackbone(SMALL, weights="default"), "conv1.0.weight", "holds NaN")
    stored(SMALL, nn.Linear(2, 2), hub, monkeypatch)
    refused(lambda: TorchvisionBackbone(SMALL, weights="default"), "Python objects")


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: TorchvisionBackbone("resnet19"), ["no classification network 'resnet19'", "Did you mean resnet1"]),
        (lambda: TorchvisionBackbone("fcn_resnet50"), ["no classification network"]),
        (
            lambda: TorchvisionBackbone("resnet50", weights="IMAGENET_V2"),
            ["IMAGENET1K_V1", "Did you mean IMAGENET1K_V"],
        ),
        (lambda: TorchvisionBackbone(SMALL, weights="missing.pth"), ["weights file 'missing.pth' does not exist"]),
        (lambda: TorchvisionBackbone(SMALL, weights="default", in_channels=4), ["3 channels", "in_channels is 4"]),
        (lambda: TorchvisionBackbone(SMALL, in_channels=0), ["in_channels", "0"]),
        (lambda: TorchvisionBackbone(SMALL, resize=-1), ["resize", "-1"]),
        (lambda: TorchvisionBackbone("inception_v3", image_size=28), ["cannot process images of 28x28", "resize"]),
        (lambda: TorchvisionBackbone("vit_b_16", image_size=28), ["vit_b_16", "28x28", "set resize: 224"]),
        (lambda: TorchvisionBackbone("vit_b_16", weights="default", image_size=84), ["224x224 only", "resize: 224"]),
        (lambda: TorchvisionBackbone(SMALL, mean=[0.5, 0.5]), ["mean", "3 channels", "[0.5, 0.5]"]),
        (lambda: TorchvisionBackbone(SMALL, mean=[float("nan")]), ["mean", "finite"]),
        (lambda: TorchvisionBackbone(SMALL, std=[0.0]), ["std", "above 0"]),
        (lambda: TorchvisionBackbone(SMALL, std=[]), ["std", "above 0", "[]"]),
    ],
)
def test_refusals_at_construction(build, words):
    refused(build, *words)


def test_channels():
    net = TorchvisionBackbone(SMALL, in_channels=1, image_size=32).eval()
    grey = torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(net(grey), net(grey.expand(-1, 3, -1, -1)))
    net.check_input((1, 32, 32))
    other = TorchvisionBackbone(SMALL, in_channels=5, image_size=32)
    assert other.network.conv1[0].in_channels == 5
    assert other.mean.shape == (5, 1, 1)
    assert other(torch.rand(2, 5, 32, 32)).shape == (2, other.out_features)
    refused(lambda: other.check_input((1, 32, 32)), "(5, 32, 32)", "the data has (1, 32, 32)")
    refused(lambda: net.check_input((2, 32, 32)), "set in_channels")


def test_sizes():
    free = TorchvisionBackbone(SMALL)
    for shape in ((3, 32, 32), (1, 40, 33)):
        free.check_input(shape)
    refused(lambda: TorchvisionBackbone("inception_v3").check_input((3, 20, 20)), "cannot process images of 20x20")
    refused(lambda: free.check_input((32, 32)), "(3, H, W)", "the data has (32, 32)")
    refused(lambda: TorchvisionBackbone(SMALL, image_size=32).check_input((3, 28, 28)), "(3, 32, 32)", "(3, 28, 28)")
    scaled = TorchvisionBackbone(SMALL, image_size=20, resize=64).eval()
    scaled.check_input((3, 20, 20))
    seen = []
    scaled.network.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    scaled(torch.rand(2, 3, 20, 20))
    assert seen == [(2, 3, 64, 64)]


def test_checking_leaves_frozen_layers_in_evaluation():
    net = TorchvisionBackbone(SMALL).train()
    net.network.conv1.eval()
    before = [module.training for module in net.modules()]
    statistics = copy.deepcopy(net.state_dict())
    net.check_input((3, 32, 32))
    assert [module.training for module in net.modules()] == before
    assert all(torch.equal(value, statistics[key]) for key, value in net.state_dict().items())


def test_statistics():
    net = TorchvisionBackbone(SMALL, mean=[0.1, 0.2, 0.3], std=[0.5]).eval()
    bare = TorchvisionBackbone(SMALL).eval()
    bare.network.load_state_dict(net.network.state_dict())
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(net(x), bare((x - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / 0.5))


def test_weights_of_files(tmp_path):
    original = plain(SMALL)
    torch.save(original.state_dict(), tmp_path / "library.pth")
    net = TorchvisionBackbone(SMALL, weights=str(tmp_path / "library.pth"))
    assert torch.equal(net.network.conv1[0].weight, original.conv1[0].weight)
    assert set(net.weights_report.dropped) == {"fc.weight", "fc.bias"}
    assert net.mean.flatten().tolist() == pytest.approx(image_backbone.IMAGENET_MEAN)
    # a checkpoint of a method: what it was trained with comes along, unless something else is given
    module = ProtoNetModule(TorchvisionBackbone(SMALL, mean=[0.25], std=[2.0]))
    torch.save({"state_dict": module.state_dict()}, tmp_path / "run.ckpt")
    path = str(tmp_path / "run.ckpt")
    again = TorchvisionBackbone(SMALL, weights=path)
    assert torch.equal(again.mean, torch.full((3, 1, 1), 0.25))
    assert torch.equal(again.network.conv1[0].weight, module.backbone.network.conv1[0].weight)
    assert not again.weights_report.dropped
    given = TorchvisionBackbone(SMALL, weights=path, mean=[0.5])
    assert (given.mean[0].item(), given.std[0].item()) == (0.5, 2.0)
    refused(lambda: TorchvisionBackbone("mobilenet_v3_small", weights=path), "another architecture")


def test_weights_for_another_size_of_images(tmp_path, monkeypatch):
    small = lambda name, **size: torchvision.models.VisionTransformer(  # noqa: E731
        size["image_size"], 16, 1, 2, 8, 16
    )
    monkeypatch.setattr(
        torchvision_backbone.torchvision.models, "get_model", lambda name, weights, **s: small(name, **s)
    )
    torch.save(TorchvisionBackbone("vit_b_16", image_size=32).state_dict(), tmp_path / "a.pt")
    path = str(tmp_path / "a.pt")
    net = TorchvisionBackbone("vit_b_16", image_size=20, resize=32, weights=path)
    assert net(torch.rand(2, 3, 20, 20)).shape == (2, 8)
    assert net.fixed_size == 32
    refused(lambda: net.check_input((3, 32, 32)), "(3, 20, 20)")
    refused(lambda: TorchvisionBackbone("vit_b_16", image_size=48, weights=path), "another size than 48", "set resize")
    refused(lambda: TorchvisionBackbone("vit_b_16").check_input((3, 32, 32)), "224x224 only", "set resize: 224")


def test_copies_checkpoints_and_fresh_weights(tmp_path):
    net = TorchvisionBackbone(SMALL, image_size=32).eval()
    x = torch.rand(2, 3, 32, 32)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(other(x), net(x))
        assert other.__dict__["_init_arguments"] == {"name": SMALL, "image_size": 32}
    before = net(x)
    torch.manual_seed(1)
    net.reset_parameters()
    assert not torch.equal(net(x), before)
    torch.manual_seed(1)
    assert torch.equal(net.network.conv1[0].weight, TorchvisionBackbone(SMALL).network.conv1[0].weight)


def test_a_checkpoint_needs_no_file_of_weights(hub, tmp_path, monkeypatch):
    file = stored(SMALL, plain(SMALL).state_dict(), hub, monkeypatch)
    module = ProtoNetModule(TorchvisionBackbone(SMALL, weights="default", image_size=32))
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    file.unlink()
    again = ProtoNetModule.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True).eval().backbone
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(again(x), module.eval().backbone(x))
    # as torchvision draws them: other modules than these cannot do so themselves
    assert module.untrained_twin() is not None
