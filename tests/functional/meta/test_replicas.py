"""Copies of the structure of a network: what is shared, what is not, and what cannot be copied."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from metatransfer import MLP, ANILModule, Backbone, Conv4, Episode, MAMLModule, ProtoNetModule, ReptileModule, UserError
from metatransfer.functional import replica, stateless
from metatransfer.functional.meta.replicas import deep_copy
from metatransfer.functional.meta.threads import SharedSetting
from metatransfer.methods.options import Execution, InnerLoop

LOOP = Execution(batching="loop")


def task(tasks=2):
    torch.manual_seed(0)
    labels = (torch.arange(9) % 3).repeat(tasks, 1)
    return Episode(torch.randn(tasks, 9, 16), labels, torch.randn(tasks, 9, 16), labels)


class Plain(Backbone):
    out_features = 8

    def __init__(self):
        super().__init__()
        self.first, self.rest = nn.Linear(16, 8), nn.Sequential(nn.Linear(8, 8), nn.ReLU())

    def forward(self, x):
        return self.rest(self.first(x))


class Shared(Plain):
    """A block under two names, and an activation with a weight that is used twice."""

    def __init__(self):
        super().__init__()
        del self.rest
        self.act, self.block = nn.PReLU(), nn.Linear(8, 8)
        self.body = nn.Sequential(self.block, self.act, self.block, self.act)

    def forward(self, x):
        return self.body(self.first(x))


class Tied(Plain):
    """One weight in two layers, which a list repeats."""

    def __init__(self):
        super().__init__()
        self.second = nn.Linear(8, 8)
        self.second.weight = self.rest[0].weight
        self.layers = [self.first, self.rest, self.second]

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class Hooked(Plain):
    """A hook that is a closure, and one that is a method, hand features to ``forward``."""

    def __init__(self):
        super().__init__()
        self.kept = {}
        self.first.register_forward_hook(lambda module, args, output: self.kept.update(first=self.rest(output)))
        self.rest.register_forward_hook(self.keep)

    def keep(self, module, args, output):
        self.kept["rest"] = output

    def forward(self, x):
        self.first(x)
        return self.kept["first"] + self.kept["rest"]


def by_hand(make, state, x, y, query, steps, lr):
    """The inner loop on another module, in place."""
    own = MAMLModule(make(), 3).network
    own.load_state_dict(state)
    for _ in range(steps):
        values = list(own.parameters())
        loss = nn.functional.cross_entropy(own(x), y)
        gradients = torch.autograd.grad(loss, values)
        with torch.no_grad():
            for value, gradient in zip(values, gradients, strict=True):
                value -= lr * gradient
    return own(query).detach()


@pytest.mark.parametrize("make", [Shared, Tied, Hooked])
@pytest.mark.parametrize("batching", ["loop", "vmap"])
def test_what_has_two_names_adapts_and_stays_the_modules(make, batching):
    torch.manual_seed(1)
    execution = Execution(batching=batching)
    module = MAMLModule(make(), 3, inner=InnerLoop(steps=3, lr=0.2), execution=execution).eval()
    before, own = copy.deepcopy(module.state_dict()), [id(value) for value in module.parameters()]
    x, y, query, _ = (part[0] for part in task()[:4])
    found = module.adapt(x, y).outputs(query)
    torch.testing.assert_close(
        found, by_hand(make, module.network.state_dict(), x, y, query, 3, 0.2), rtol=1e-4, atol=1e-5
    )
    assert [id(value) for value in module.parameters()] == own
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    module.train().training_loss(task())[0].backward()
    assert all(value.grad is not None and value.grad.any() for value in module.parameters())


@pytest.mark.parametrize("method", [MAMLModule, ReptileModule])
def test_a_shared_block_moves_in_training(method):
    module = method(Shared(), 3, inner=InnerLoop(steps=1, lr=0.1)).train()
    weight = module.backbone.block.weight
    before = weight.detach().clone()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    module.training_loss(task())[0].backward()
    optimizer.step()
    assert module.backbone.block.weight is module.backbone.body[0].weight is weight
    assert not torch.equal(weight, before)


class Saving(Plain):
    reentrant = False

    def forward(self, x):
        return checkpoint(self.rest, self.first(x), use_reentrant=self.reentrant)


class Reentrant(Saving):
    reentrant = True


def gradients(module):
    module.train().training_loss(task())[0].backward()
    return [value.grad for value in module.parameters()]


@pytest.mark.parametrize("first_order", [False, True])
def test_activation_checkpointing_recomputes_with_the_adapted_weights(first_order):
    found = []
    for make in (Plain, Saving):
        torch.manual_seed(1)
        inner = InnerLoop(steps=3, lr=0.3, first_order=first_order)
        found.append(gradients(MAMLModule(make(), 3, inner=inner, execution=LOOP)))
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_reentrant_checkpointing_is_an_error():
    module = MAMLModule(Reentrant(), 3, execution=LOOP).eval()
    with pytest.raises(UserError, match="use_reentrant=True, which has no gradient in an inner loop"):
        module.adapt(task().support_x[0], task().support_y[0])


class Helper:
    def __init__(self, network):
        self.network = network


class Hidden(Plain):
    def __init__(self):
        super().__init__()
        self.helper = Helper(self.rest)

    def forward(self, x):
        return self.helper.network(self.first(x))


@pytest.mark.parametrize("batching", ["loop", "vmap"])
def test_weights_that_a_task_cannot_reach_are_an_error(batching):
    module = MAMLModule(Hidden(), 3, execution=Execution(batching=batching)).eval()
    with pytest.raises(
        UserError,
        match=r"uses its parameter 'backbone\.rest\.0\.weight' in an object or a function outside of its modules",
    ):
        module.adapt(task().support_x[0], task().support_y[0])


class Branch(Plain):
    def forward(self, x):
        h = self.first(x)
        return self.rest(h) if h.mean() > 0 else h.tanh()


class Numbers(Plain):
    def forward(self, x):
        h = self.first(x)
        return h + torch.from_numpy(h.detach().numpy() * 0.1)


class Collecting(Plain):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x):
        h = self.first(x)
        self.mean.mul_(0.9).add_(0.1 * h.detach().mean(0))
        return h - self.mean


@pytest.mark.parametrize("make", [Branch, Numbers, Collecting, Saving, Reentrant])
def test_what_vmap_cannot_do_says_to_use_a_loop(make):
    module = MAMLModule(make(), 3, execution=Execution(batching="vmap")).train()
    with pytest.raises(UserError, match=r"cannot be mapped over tasks .*--model\.execution\.batching loop"):
        module.training_loss(task())


class Broken(Plain):
    def forward(self, x):
        return self.first(x[:, :3])


def test_an_error_of_the_network_itself_is_not_blamed_on_vmap():
    module = MAMLModule(Broken(), 3, execution=Execution(batching="vmap")).train()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        module.training_loss(task())


class Words(Backbone):
    out_features = 4

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        found = self.layer(x)
        return found.mean(1) if found.dim() == 3 else found


@pytest.mark.parametrize("batching", ["loop", "vmap"])
def test_sparse_embeddings_have_dense_gradients(batching):
    found = []
    for sparse in (False, True):
        torch.manual_seed(0)
        network = Words(nn.Embedding(10, 4, sparse=sparse))
        module = MAMLModule(network, 3, execution=Execution(batching=batching)).train()
        x, labels = torch.randint(0, 10, (2, 9, 5)), (torch.arange(9) % 3).repeat(2, 1)
        module.training_loss(Episode(x, labels, x, labels))[0].backward()
        found.append(network.layer.weight.grad)
    assert torch.equal(*found)


@pytest.mark.parametrize("padding", [None, 3])
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_of_words_are_the_native_ones(mode, padding):
    torch.manual_seed(0)
    layer = nn.EmbeddingBag(10, 4, mode=mode, padding_idx=padding).double()
    x = torch.cat([torch.randint(0, 10, (6, 5)), torch.full((1, 5), 3)])
    found, expected = stateless(layer)({}, x), layer(x)
    torch.testing.assert_close(found, expected)
    weights = torch.rand_like(found)
    one, two = (torch.autograd.grad((out * weights).sum(), [layer.weight])[0] for out in (found, expected))
    torch.testing.assert_close(one, two)
    with pytest.raises(UserError, match=r"takes token numbers of shape \(N, L\), and no offsets"):
        stateless(layer)({}, x[0])


@pytest.mark.parametrize("batching", ["loop", "vmap"])
@pytest.mark.parametrize("sparse", [False, True])
def test_bags_of_words_adapt_in_second_order(batching, sparse):
    found = []
    for layer in (nn.Embedding, nn.EmbeddingBag):
        torch.manual_seed(0)
        network = Words(layer(10, 4, sparse=sparse))
        module = MAMLModule(network, 3, execution=Execution(batching=batching)).train()
        x, labels = torch.randint(0, 10, (2, 9, 5)), (torch.arange(9) % 3).repeat(2, 1)
        module.training_loss(Episode(x, labels, x, labels))[0].backward()
        found.append(network.layer.weight.grad)
    torch.testing.assert_close(*found)


def test_a_lazy_layer_is_an_error():
    with pytest.raises(UserError, match=r"layer '0' \(LazyLinear\) has no weights before its first forward pass"):
        stateless(nn.Sequential(nn.LazyLinear(3)))


def test_a_copy_shares_its_tensors_and_no_attribute():
    network = Shared()
    network.train().register_buffer("count", torch.zeros(1))
    own = replica(network).eval()
    assert network.training
    assert not own.training
    assert own.body[0] is own.body[2] is own.block is not network.block
    assert all(mine is theirs for mine, theirs in zip(own.parameters(), network.parameters(), strict=True))
    own.note = 1
    own.block.register_forward_hook(lambda *_: None)
    assert not hasattr(network, "note")
    assert not network.block._forward_hooks
    new = replica(network, {"block.weight": torch.zeros(8, 8)}, [network.count])
    new.count.add_(1)
    assert new.body[2].weight.sum() == 0
    assert network.count == 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compiled_parts_run_as_they_were_and_scripts_are_an_error():
    network = nn.Sequential(torch.compile(nn.Linear(2, 2)))
    own = replica(network, {"0._orig_mod.weight": torch.zeros(2, 2)})
    torch.testing.assert_close(own(torch.ones(1, 2))[0], network[0].bias)
    with pytest.raises(UserError, match="compiled by TorchScript"):
        replica(nn.Sequential(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2))))


class Keeps(Plain):
    """Keeps tensors of its last pass, one of them inside of another object, and has a weight of the old weight_norm."""

    def __init__(self):
        super().__init__()
        self.first = nn.utils.weight_norm(self.first)

    def forward(self, x):
        self.last = super().forward(x)
        self.spread = torch.distributions.Normal(self.last, 1.0)
        return self.last


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_network_that_keeps_tensors_can_be_copied():
    module = ProtoNetModule(Keeps()).train()
    module.training_loss(task())
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(module)
    own = deep_copy(module)
    assert torch.equal(own.backbone.spread.mean, module.backbone.last)
    assert own.backbone.last.is_leaf
    assert own.backbone.first.weight_v is not module.backbone.first.weight_v
    assert module.restarted(0).training_loss(task())[0] > 0


# ---- threads


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: MAMLModule(Conv4(hidden_channels=4), 3, inner=InnerLoop(steps=2, lr=0.1)), (1, 28, 28)),
        (lambda: MAMLModule(MLP((16,), (8,)), 3, inner=InnerLoop(steps=2, lr=0.1)), (16,)),
        (lambda: ANILModule(MLP((16,), (8,)), 3, inner=InnerLoop(steps=2, lr=0.1)), (16,)),
        (lambda: ProtoNetModule(Conv4(hidden_channels=4)).train(), (1, 28, 28)),
    ],
)
def test_threads_share_a_module(make, shape):
    torch.manual_seed(0)
    module, labels = make(), torch.arange(6) % 3
    tasks = [(torch.rand(6, *shape), torch.rand(4, *shape)) for _ in range(12)]
    answers = lambda data: module.adapt(data[0], labels).outputs(data[1])  # noqa: E731
    alone, before = [answers(data) for data in tasks], copy.deepcopy(module.state_dict())
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(answers, tasks))
    for one, two in zip(alone, together, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(part.training == module.training for part in module.modules())


def test_a_setting_holds_until_its_last_user_has_left():
    seen = []

    class Setting:
        def __enter__(self):
            seen.append("on")

        def __exit__(self, *error):
            seen.append("off")

    setting = SharedSetting(Setting)
    with setting:
        with setting:
            pass
        assert seen == ["on"]
    assert seen == ["on", "off"]
