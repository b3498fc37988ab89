"""Shapes, promises and refusals of the backbones and heads."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metatransfer.errors import UserError
from metatransfer.nn import MLP, Backbone, Conv4, CosineHead, Head, LeNet, LinearHead, ResNet12, TokenAverage

SMALL_RESNET = {"widths": (4, 6, 8, 10)}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


BACKBONES = {
    "conv4": (lambda: Conv4(1, 28, 8), (1, 28, 28)),
    "conv4_84": (lambda: Conv4(3, 84, 4), (3, 84, 84)),
    "conv4_group": (lambda: Conv4(1, 16, 12, norm="group", dropout=0.1), (1, 16, 16)),
    "conv4_none": (lambda: Conv4(2, 20, 4, norm="none"), (2, 20, 20)),
    "resnet12": (lambda: ResNet12(3, **SMALL_RESNET), (3, 32, 32)),
    "resnet12_group": (lambda: ResNet12(1, **SMALL_RESNET, norm="group", dropout=0.0), (1, 16, 16)),
    "mlp": (lambda: MLP(), (1,)),
    "mlp_image": (lambda: MLP((1, 6, 6), (16, 8), norm=True, dropout=0.2), (1, 6, 6)),
}


@pytest.fixture(params=BACKBONES)
def backbone(request):
    build, shape = BACKBONES[request.param]
    return build(), shape


def test_out_features_and_shape_are_as_promised(backbone):
    net, shape = backbone
    for mode in (True, False):
        assert net.train(mode)(torch.randn(3, *shape)).shape == (3, net.out_features)
    assert net(torch.randn(1, *shape)).shape == (1, net.out_features)
    net.check_input(shape)
    net.check_input(torch.Size(shape))


def test_construction_leaves_training_mode_and_statistics_fresh(backbone):
    net, _ = backbone
    assert all(layer.training for layer in net.modules())
    for layer in net.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            assert int(layer.num_batches_tracked) == 0
            assert (layer.running_mean == 0).all()


def test_every_parameter_gets_a_gradient(backbone):
    net, shape = backbone
    net.train()(torch.randn(6, *shape)).square().sum().backward()
    assert all(value.grad is not None and torch.isfinite(value.grad).all() for value in net.parameters())


def test_evaluation_does_not_depend_on_company(backbone):
    net, shape = backbone
    x = torch.randn(5, *shape)
    net.eval()
    torch.testing.assert_close(net(x)[2:3], net(x[2:3]), rtol=1e-4, atol=1e-5)


def test_copies_pickles_and_saved_modules(backbone):
    net, shape = backbone
    x = torch.randn(2, *shape)
    buffer = io.BytesIO()
    torch.save(net.eval(), buffer)
    buffer.seek(0)
    for other in (
        copy.deepcopy(net), copy.copy(net), pickle.loads(pickle.dumps(net)), torch.load(buffer, weights_only=False)
    ):  # fmt: skip
        assert torch.equal(other.eval()(x), net(x))
        assert other.__dict__["_init_arguments"] == net.__dict__["_init_arguments"]
        assert other.out_features == net.out_features
    deep = copy.deepcopy(net)
    with torch.no_grad():
        next(deep.parameters()).add_(1)
    assert not torch.equal(next(deep.parameters()), next(net.parameters()))


def test_every_layer_with_parameters_can_be_drawn_anew(backbone):
    net, _ = backbone
    for layer in net.modules():
        if layer._parameters:
            layer.reset_parameters()
    first = copy.deepcopy(net.state_dict())
    torch.manual_seed(1)
    for layer in net.modules():
        if layer._parameters:
            layer.reset_parameters()
    assert any(not torch.equal(first[key], value) for key, value in net.state_dict().items())


@pytest.mark.parametrize(("size", "hidden", "expected"), [(28, 64, 64), (84, 32, 800), (84, 64, 1600), (16, 4, 4)])
def test_conv4_feature_sizes_of_the_papers(size, hidden, expected):
    assert Conv4(1, size, hidden).out_features == expected


def test_conv4_is_the_papers_network():
    assert sum(value.numel() for value in Conv4().parameters()) == 111_936
    kinds = [type(layer).__name__ for layer in Conv4().layers]
    # pooling and ReLU commute, and pooling first is faster
    assert kinds == ["Conv2d", "BatchNorm2d", "MaxPool2d", "ReLU"] * 4


def test_resnet12_is_the_papers_network():
    net = ResNet12()
    assert net.out_features == 640
    assert 12.4e6 < sum(value.numel() for value in net.parameters()) < 12.5e6
    assert sum(isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) for m in net.modules()) == 12


def test_resnet12_takes_any_large_enough_size():
    net = ResNet12(1, **SMALL_RESNET).eval()
    for shape in ((1, 16, 16), (1, 28, 35), (1, 84, 84)):
        net.check_input(shape)
        assert net(torch.zeros(2, *shape)).shape == (2, 10)


def test_mlp_is_mamls_sinusoid_network():
    net = MLP()
    assert [tuple(value.shape) for value in net.parameters()] == [(40, 1), (40,), (40, 40), (40,)]
    x = torch.randn(5, 1)
    first, second = net.layers[1], net.layers[3]
    torch.testing.assert_close(net(x), F.relu(second(F.relu(first(x)))))


def test_mlp_accepts_lists_as_yaml_gives_them():
    net = MLP(in_shape=[1, 4, 4], hidden=[3])
    assert net.in_shape == (1, 4, 4)
    net.check_input((1, 4, 4))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Conv4(1, 15), ["Conv4", "(1, 15, 15)", "larger images"]),
        (lambda: Conv4(1, 0), ["image_size", "0"]),
        (lambda: Conv4(norm="layer"), ["norm", "one of batch, group, none", "'layer'"]),
        (lambda: ResNet12(norm="Batch"), ["norm", "one of batch, group, none", "'Batch'"]),
        (lambda: ResNet12(widths=(4, 4, 4)), ["ResNet12", "four widths", "[4, 4, 4]"]),
        (lambda: MLP(hidden=()), ["MLP", "at least one hidden width", "hidden=[]"]),
        (lambda: MLP(hidden=(4, 0)), ["MLP", "1 or more", "hidden=[4, 0]"]),
        (lambda: MLP(in_shape=(1, -2)), ["MLP", "in_shape=[1, -2]"]),
        (lambda: MLP(in_shape=()), ["MLP", "in_shape=[]"]),
        (lambda: Conv4(hidden_channels=0), ["hidden_channels", "0"]),
        (lambda: Conv4(hidden_channels=-1), ["hidden_channels", "-1"]),
        (lambda: Conv4(in_channels=0), ["in_channels", "0"]),
        (lambda: ResNet12(widths=(4, 0, 4, 4)), ["widths", "0"]),
        (lambda: Conv4(dropout=1.5), ["dropout", "1.5"]),
        (lambda: MLP(dropout=-0.1), ["dropout", "-0.1"]),
    ],
)
def test_refusals_at_construction(build, words):
    with pytest.raises(UserError) as caught:
        build()
    sentence = str(caught.value)
    assert all(word in sentence for word in words), sentence
    assert "\n" not in sentence
    assert sentence.endswith((".", "?"))


@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (lambda: Conv4(1, 28, 4), (3, 28, 28)),
        (lambda: Conv4(1, 28, 4), (1, 84, 84)),
        (lambda: Conv4(1, 28, 4), (28, 28)),
        (lambda: ResNet12(3, **SMALL_RESNET), (1, 32, 32)),
        (lambda: ResNet12(3, **SMALL_RESNET), (3, 15, 32)),
        (lambda: ResNet12(3, **SMALL_RESNET), (3, 32)),
        (lambda: MLP((2,)), (1,)),
        (lambda: MLP((2,)), ()),
    ],
)
def test_refusals_of_samples(net, shape):
    net = net()
    with pytest.raises(UserError) as caught:
        net.check_input(shape)
    sentence = str(caught.value)
    assert type(net).__name__ in sentence
    assert f"the data has {shape}" in sentence
    assert "\n" not in sentence
    assert sentence.endswith(".")


def test_a_users_backbone_needs_only_out_features_and_forward():
    class Mean(Backbone):
        def __init__(self, width=3):
            super().__init__()
            self.out_features = width
            self.in_shape = [1, 2, 2]  # as it comes from a YAML file

        def forward(self, x):
            return x.flatten(1)[:, : self.out_features]

    net = Mean(2)
    assert net(torch.ones(4, 1, 2, 2)).shape == (4, 2)
    net.check_input((1, 2, 2))


def test_a_backbone_without_forward_says_so():
    with pytest.raises(TypeError, match=r"abstract class Half .*forward"):
        type("Half", (Backbone,), {})()


def test_linear_head_is_torchs():
    torch.manual_seed(5)
    head = LinearHead(4, 3)
    torch.manual_seed(5)
    plain = nn.Linear(4, 3)
    x = torch.randn(6, 4)
    torch.testing.assert_close(head(x), plain(x))
    assert (head.in_features, head.out_features) == (4, 3)
    assert isinstance(head, Head)


def test_cosine_head():
    head = CosineHead(4, 3, scale=7.0)
    x = torch.randn(6, 4)
    expected = torch.stack([7 * F.cosine_similarity(x, row.expand_as(x)) for row in head.weight], 1)
    torch.testing.assert_close(head(x), expected)
    torch.testing.assert_close(head(1000 * x), head(x))
    assert torch.isfinite(head(torch.zeros(1, 4))).all()
    assert head.scale.requires_grad
    with torch.no_grad():
        head.scale.fill_(0)
    weight = head.weight.clone()
    head.reset_parameters()
    assert head.scale.item() == 7.0
    assert not torch.equal(weight, head.weight)


@pytest.mark.parametrize(
    ("build", "shape", "words"),
    [
        (
            lambda: Conv4(),
            (7,),
            "for rows of numbers, such as those of a table, use another network: --model.backbone MLP",
        ),
        (lambda: LeNet(), (7,), "--model.backbone MLP"),
        (lambda: ResNet12(), (7,), "--model.backbone MLP"),
        (
            lambda: MLP((7,)),
            (1, 28, 28),
            "in_shape=(1, 28, 28) (on the command line, leave out in_shape)",
        ),
        (lambda: MLP((7,)), (8,), "or give a trained one samples of its shape"),
        (lambda: Conv4(), (3, 28, 28), "give the backbone the data's channels and size"),
        (lambda: ResNet12(), (1, 28, 28), "set in_channels"),
    ],
)
def test_which_network_to_use_instead(build, shape, words):
    with pytest.raises(UserError) as caught:
        build().check_input(shape)
    assert words in str(caught.value)


def test_a_network_of_texts_says_what_reads_tables():
    with pytest.raises(UserError, match=r"such as the collection Texts; for rows of numbers, .* --model\.backbone MLP"):
        TokenAverage(5)(torch.zeros(2, 7))
    with pytest.raises(UserError, match=r"For tables use --model\.backbone MLP, for images Conv4"):
        TokenAverage()
