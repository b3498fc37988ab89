"""timm's networks as backbones: features, weights of files and of the local cache, and what is refused."""

import copy
import pickle
import sys

import pytest
import torch
from safetensors.torch import save_file

from metatransfer import ProtoNetModule, UserError
from metatransfer.nn.backbones.timm_backbone import TimmBackbone
from metatransfer.nn.layers import layers_of
from metatransfer.nn.weights import no_weight_files

SMALL = "test_resnet.r160_in1k"


def refused(build, *words):
    with pytest.raises(UserError) as caught:
        build()
    sentence = str(caught.value)
    assert all(word in sentence for word in words), sentence
    assert "\n" not in sentence
    assert sentence.endswith((".", "?"))


def test_without_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    refused(lambda: TimmBackbone("resnet18"), "needs timm", "pip install 'metatransfer[timm]'")


timm = pytest.importorskip("timm")
hub = pytest.importorskip("huggingface_hub")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, and no way out."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("socket.create_connection", lambda *_, **__: pytest.fail("nothing may be fetched"))
    return tmp_path / "cache"


def in_cache(cache, repository, state):
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    save_file(state, folder / "snapshots" / "abc" / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "size", "features"),
    [
        (SMALL, 32, 96), ("resnet18", 32, 512), ("test_vit", 160, 64), ("vit_tiny_patch16_224", 64, 192),
        ("tf_efficientnet_lite0", 32, 1280), ("mobilenetv3_small_050", 32, 1024), ("convnext_atto", 32, 320),
    ],
)  # fmt: skip
def test_features_are_what_goes_into_the_classifier(name, size, features):
    net = TimmBackbone(name, image_size=size)
    assert net.out_features == features
    assert net.train()(torch.rand(2, 1, size, size)).shape == (2, features)
    named = [name for layer in layers_of(net) for name in layer.parameters]
    assert sorted(named) == sorted(name for name, _ in net.named_parameters())


def test_weights_of_the_local_cache(cache):
    words = ["not in the local cache", f"hf download timm/{SMALL} model.safetensors"]
    refused(lambda: TimmBackbone(SMALL, weights="default"), *words)
    original = timm.create_model(SMALL).eval()
    in_cache(cache, f"timm/{SMALL}", original.state_dict())
    net = TimmBackbone(SMALL, weights="default").eval()
    assert net.weights_report.dropped.keys() == {"fc.weight", "fc.bias"}
    assert net.weights_report.new == ()
    assert net.mean.flatten().tolist() == pytest.approx(original.pretrained_cfg["mean"])
    x = torch.rand(2, 3, 64, 64)
    inner = (x - net.mean) / net.std
    torch.testing.assert_close(net(x), original.forward_head(original.forward_features(inner), pre_logits=True))
    with no_weight_files():
        assert TimmBackbone(SMALL, weights="default").weights_report is None


def test_weights_of_files(tmp_path):
    original = timm.create_model(SMALL)
    save_file(original.state_dict(), tmp_path / "a.safetensors")
    net = TimmBackbone(SMALL, weights=str(tmp_path / "a.safetensors"), mean=[127 / 255], std=[128 / 255])
    assert all(torch.equal(value, original.state_dict()[key]) for key, value in net.network.state_dict().items())
    assert net.std.flatten().tolist() == pytest.approx([128 / 255] * 3)
    torch.save({"state_dict": ProtoNetModule(net).state_dict()}, tmp_path / "run.ckpt")
    again = TimmBackbone(SMALL, weights=str(tmp_path / "run.ckpt"))
    assert torch.equal(again.mean, net.mean)
    assert again.weights_report.new == ()


def test_weights_for_another_size_of_images(tmp_path):
    torch.save(TimmBackbone("test_vit").state_dict(), tmp_path / "a.pt")
    path = str(tmp_path / "a.pt")
    refused(lambda: TimmBackbone("test_vit", weights=path, image_size=64), "another size than 64", "set resize")
    net = TimmBackbone("test_vit", weights=path, image_size=64, resize=160)
    assert net(torch.rand(2, 3, 64, 64)).shape == (2, 64)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: TimmBackbone("resnet1"), ["no network 'resnet1'", "Did you mean resnet"]),
        (lambda: TimmBackbone("hf-hub:timm/resnet18"), ["no network"]),
        (lambda: TimmBackbone("resnet18.a1_in2k"), ["no weights 'a1_in2k'", "Did you mean a1_in1k?", "Known: "]),
        (lambda: TimmBackbone(SMALL, weights="missing.pth"), ["weights file 'missing.pth' does not exist"]),
        (lambda: TimmBackbone(SMALL, weights="default", in_channels=2), ["3 channels", "in_channels is 2"]),
        (lambda: TimmBackbone("test_vit", weights="default", image_size=32), ["160x160 only", "set resize: 160"]),
        (lambda: TimmBackbone("vit_tiny_patch16_224", image_size=8), ["8x8"]),
        (lambda: TimmBackbone("xcit_nano_12_p16_224", image_size=40), ["timm cannot build", "40x40", "set resize"]),
        (lambda: TimmBackbone(SMALL, mean=[1.0, 2.0]), ["mean", "3 channels"]),
    ],
)
def test_refusals_at_construction(build, words):
    refused(build, *words)


def test_channels():
    net = TimmBackbone(SMALL, in_channels=5, image_size=32)
    assert net(torch.rand(2, 5, 32, 32)).shape == (2, 96)
    refused(lambda: net.check_input((3, 32, 32)), "TimmBackbone", "(5, 32, 32)", "the data has (3, 32, 32)")


def test_copies_and_fresh_weights():
    net = TimmBackbone("test_vit", resize=160).eval()
    x = torch.rand(2, 3, 32, 32)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(other(x), net(x))
    before = net(x)
    net.reset_parameters()
    assert not torch.equal(net(x), before)
