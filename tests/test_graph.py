"""The dataflow graph, and that tracing leaves no trace."""

import random
import threading

import pytest
import torch
from networks import Residual, small_resnet
from torch import nn

from senet import UserError
from senet.tracing import meta_copy, trace


def _trace(model, *size):
    return trace(model, (torch.zeros(1, *size),), {})


@pytest.mark.parametrize("in_place", [False, True])
def test_sum_of_a_residual_block(in_place):
    graph = _trace(Residual(in_place=in_place), 16, 8, 8)
    (total,) = [node for node in graph.nodes if node.kind == "add"]
    branch, identity = (graph.nodes[i] for i in total.parents)
    assert (branch.kind, branch.module) == ("norm", "bn2")
    assert identity.kind == "input"
    assert graph.common_ancestor(total.parents) == identity.index
    kinds = [n.kind for n in graph.members(graph.between(identity.index, branch.index))]
    assert kinds == ["conv", "norm", "activation", "conv", "norm"]


def test_producers_are_the_modules_that_made_a_node():
    graph = _trace(nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1)), nn.Identity()), 3, 2, 2)
    assert [call.path for call in graph.producers[1]] == ["0.0", "0", ""]
    assert [call.path for call in graph.calls] == ["0.0", "0", "1", ""]


def test_channels_are_followed_through_permutations():
    class Permuting(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.linear = nn.Conv2d(3, 8, 1), nn.Linear(8, 12)

        def forward(self, x):
            return self.linear(self.conv(x).permute(0, 2, 3, 1)).transpose(1, 3)

    nodes = _trace(Permuting(), 3, 5, 6).nodes
    assert [(n.op, n.channel_dim, n.channels) for n in nodes[1:]] == [
        ("conv2d", 1, 8),
        ("permute", 3, 8),
        ("linear", 3, 12),
        ("transpose", 1, 12),
    ]


@pytest.mark.parametrize(
    ("reorder", "channel_dim"),
    [
        (lambda x: torch.permute(x, dims=(0, 2, 3, 1)), 3),
        (lambda x: x.permute(dims=(0, -2, -1, 1)), 3),
        (lambda x: torch.permute(input=x, dims=(1, 0, 2, 3)), 0),
        (lambda x: x.transpose(dim0=1, dim1=-1), 3),
        (lambda x: torch.transpose(x, 2, dim1=3), 1),
        (lambda x: x.movedim(1, -1), 3),
        (lambda x: torch.moveaxis(x, source=(1, 2), destination=(2, 1)), 2),
        (lambda x: x.swapaxes(1, 2), 2),
        (lambda x: torch.swapdims(x, 3, 1), 3),
        (lambda x: x.mT, 1),
        (lambda x: x.transpose(1, 2).mT.data, 3),
        (lambda x: x.flip(1), 1),
    ],
)
def test_channels_are_followed_however_dimensions_are_reordered(reorder, channel_dim):
    class Reordering(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 1)

        def forward(self, x):
            return reorder(self.conv(x))

    for size in ((3, 5, 6), (3, 8, 8)):  # also where sizes do not tell
        assert _trace(Reordering(), *size).nodes[-1].channel_dim == channel_dim


def test_the_first_argument_of_a_call_is_a_tensor_itself_or_none():
    class Calling(nn.Module):
        def __init__(self):
            super().__init__()
            self.plain, self.named, self.listed = nn.ReLU(), nn.ReLU(), nn.Identity()

        def forward(self, x):
            return self.plain(x) + self.named(input=x) + self.listed([x])[0]

    first = {call.path: call.first for call in _trace(Calling(), 3, 2, 2).calls}
    assert first == {"plain": 0, "named": None, "listed": None, "": 0}


class _Scripted(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.inner = _Doubled()

    def forward(self, x):
        return self.inner(self.conv(x)) + x.mean(1, keepdim=True)


class _Doubled(nn.Module):
    def forward(self, x):
        return _double(x)


@torch.library.custom_op("senet_tests::double", mutates_args=())
def _opaque_double(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@_opaque_double.register_fake
def _(x):
    return torch.empty_like(x)


def _double(x):
    with torch._C.DisableTorchFunction():  # as scripted functions are: unseen by the mode
        return _opaque_double(x)


def test_a_function_that_is_not_seen_is_stood_for_by_its_module():
    nodes = _trace(_Scripted(), 3, 2, 2).nodes
    unseen = next(n for n in nodes if n.op == "_Doubled")
    assert nodes[unseen.parents[0]].kind == "conv"


def _snapshot(model):
    return {
        "parameters": [(n, id(p), p._version, p.device) for n, p in model.named_parameters()],
        "buffers": [(n, id(b), b._version) for n, b in model.named_buffers()],
        "modes": [m.training for m in model.modules()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        "attributes": [sorted(vars(m)) for m in model.modules()],
    }


class _Valued(nn.Module):
    """Asks for a value, which meta tensors do not have, and draws random numbers."""

    def __init__(self, fail=False):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.fail = fail

    def forward(self, x):
        random.random()
        y = self.conv(x) + torch.randn(1)
        if self.fail:
            raise RuntimeError("no such luck")
        return y if y.sum().item() > -1e9 else x


@pytest.mark.parametrize(
    "make", [small_resnet, _Valued, lambda: _Valued(fail=True)], ids=["plain", "valued", "failing"]
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("training", [True, False])
def test_leaves_everything_as_it_came(make, device, training):
    model = make().to(device).train(training)
    calls = []
    next(model.modules()).register_forward_hook(lambda *_: calls.append(1))
    before, rng, python_rng = _snapshot(model), torch.get_rng_state(), random.getstate()
    try:
        trace(model, (torch.zeros(1, 3, 8, 8, device=device),), {})
        finished = True
    except (UserError, RuntimeError):
        finished = False
    assert finished == (make is small_resnet or (make is _Valued and device == "cpu"))
    assert _snapshot(model) == before
    assert torch.equal(torch.get_rng_state(), rng)
    assert random.getstate() == python_rng
    assert not calls


def test_a_forward_that_needs_values_runs_for_real():
    graph = _trace(_Valued(), 3, 8, 8)
    assert [n.kind for n in graph.nodes[:2]] == ["input", "conv"]


class _Keeping(_Valued):
    """Keeps what it has computed, which `copy.deepcopy` refuses."""

    def __init__(self):
        super().__init__()
        self.kept = {"list": [torch.ones(2, requires_grad=True) * 2]}


class _Locked:
    def __init__(self):
        self.lock = threading.Lock()

    def hook(self, *_):
        raise AssertionError("a user's hook saw the trace")


def test_what_cannot_be_copied_does_not_matter_where_it_is_not_needed():
    model = _Keeping()
    model.register_forward_hook(_Locked().hook)
    model.conv.register_forward_pre_hook(_Locked().hook)
    assert [n.kind for n in _trace(model, 3, 8, 8).nodes[:2]] == ["input", "conv"]


def test_what_cannot_be_copied_is_told_in_one_line():
    model = _Valued()
    model.lock = threading.Lock()
    with pytest.raises(UserError, match=r"_Valued cannot be copied.*lock.*attributes") as caught:
        _trace(model, 3, 8, 8)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
@pytest.mark.parametrize("place", ["cpu", "double", "meta"])
@pytest.mark.parametrize("make", [nn.Conv2d, lambda *sizes: _Valued()], ids=["plain", "valued"])
@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
def test_weights_that_torch_computes_in_a_hook(norm, place, make):
    """Such a weight is stale after a move, until the next forward: its hook has to run."""
    model = nn.Sequential(make(3, 3, 1))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            norm(module)
    model = model.double() if place == "double" else model.to(place)
    before = _snapshot(model)
    like = next(model.parameters())
    x = torch.zeros(1, 3, 8, 8, dtype=like.dtype, device=like.device)
    if place == "meta" and make is not nn.Conv2d:
        with pytest.raises(UserError, match="forward of Sequential failed"):
            trace(model, (x,), {})
    else:
        assert "conv" in [node.kind for node in trace(model, (x,), {}).nodes]
    assert _snapshot(model) == before


def test_meta_copy_copies_no_data():
    model = small_resnet()
    twin = meta_copy(model)
    assert all(p.is_meta for p in (*twin.parameters(), *twin.buffers()))
    assert list(twin.state_dict()) == list(model.state_dict())
    assert not twin.training


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.compile(nn.Conv2d(3, 3, 1)), "is compiled"),
        (lambda: torch.jit.trace(nn.Conv2d(3, 3, 1), torch.ones(1, 3, 2, 2)), "is scripted"),
        (lambda: nn.Sequential(nn.LazyConv2d(4, 1)), "lazy parameter"),
        (lambda: nn.Conv2d(7, 3, 1), r"shape \(1, 3, 8, 8\).*give input_size="),
    ],
)
@pytest.mark.filterwarnings("ignore:`torch.jit.trace.*` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_refuses(make, message):
    with pytest.raises(UserError, match=message) as caught:
        _trace(make(), 3, 8, 8)
    assert "\n" not in str(caught.value)
