"""Norms over the batches of several processes, without SE: BatchNorm on the whole batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import torch.distributed as dist
from processes import call_group
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import senet
from senet.block import SqueezeExcite
from senet.synchronised import SynchronisedBatchNorm, synchronise

SPLITS = {2: (3, 5), 3: (2, 5, 1)}
NORMS = ("1d", "flat", "2d", "3d", "activated", "untracked", "plain affine", "cumulative")
FUSED = "recalibrated"
"""A norm that ends in SE, the two one operation, over the processes too."""


def norm_of(kind: str) -> nn.Module:
    made: nn.Module = {
        "1d": nn.BatchNorm1d(4),
        "flat": nn.BatchNorm1d(4),
        "2d": nn.BatchNorm2d(4),
        "3d": nn.BatchNorm3d(4),
        "activated": BatchNormAct2d(4, act_layer=nn.SiLU),
        "untracked": nn.BatchNorm2d(4, track_running_stats=False),
        "plain affine": nn.BatchNorm2d(4, affine=False),
        "cumulative": nn.BatchNorm2d(4, momentum=None),
        FUSED: senet.recalibrate(nn.BatchNorm2d(4), 4),
    }[kind]
    torch.manual_seed(0)
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    return made.double()


def batch(kind: str) -> tuple[Tensor, Tensor]:
    """x and ∂L/∂y; the images differ in mean, so that shares do."""
    rng = torch.Generator().manual_seed(1)
    sizes = {"1d": (7,), "flat": (), "3d": (3, 2, 4)}.get(kind, (5, 4))
    x, g = (torch.randn(8, 4, *sizes, generator=rng, dtype=torch.float64) for _ in range(2))
    return x + torch.arange(8.0).double().view(-1, *(1,) * (x.dim() - 1)), g


def findings(norm: nn.Module, x: Tensor, g: Tensor) -> dict[str, Tensor]:
    """Two steps in training and one look in evaluation."""
    for _ in range(2):
        norm.zero_grad()
        x = x.detach().requires_grad_()
        y = norm(x)
        y.backward(g)
    assert x.grad is not None
    found = {"y": y.detach(), "x": x.grad}
    found |= {name: p.grad for name, p in norm.named_parameters() if p.grad is not None}
    found |= {name: b.clone() for name, b in norm.named_buffers()}
    return found | {"evaluated": norm.eval()(x).detach()}


def shares(rank: int, world: int) -> dict[str, dict[str, Tensor]]:
    dist.init_process_group("gloo", rank=rank, world_size=world)
    found = {}
    for kind in (*NORMS, FUSED):
        x, g = (t.split(SPLITS[world])[rank] for t in batch(kind))
        norm = synchronise(norm_of(kind))
        if kind == FUSED:
            assert norm.choice(x).implementation == "aten"
            assert isinstance(norm.norm, SynchronisedBatchNorm)
        found[kind] = findings(norm, x, g)
    network = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)).double()
    DistributedDataParallel(synchronise(network))  # does not refuse it
    if rank == 0:  # in evaluation no process waits for another
        block = synchronise(senet.recalibrate(nn.BatchNorm2d(4), 4)).eval()
        plain = synchronise(nn.BatchNorm2d(4)).eval()
        x = torch.ones(1, 4, 2, 2)
        found["alone"] = {"y": block(x).detach(), "x": plain(x).detach()}
    dist.destroy_process_group()
    return found


@pytest.mark.parametrize("world", SPLITS)
def test_processes_are_one_on_the_whole_batch(world: int, tmp_path: Path) -> None:
    ranks = call_group(shares, world, tmp_path)
    for kind in (*NORMS, FUSED):
        whole_norm = norm_of(kind)
        parameters = {name for name, _ in whole_norm.named_parameters()}
        expected = findings(whole_norm, *batch(kind))
        if kind == "untracked":  # whose statistics in evaluation are each process's own
            del expected["evaluated"]
        for name, whole in expected.items():
            parts = [found[kind][name] for found in ranks]
            if name in ("y", "x", "evaluated"):
                torch.testing.assert_close(torch.cat(parts), whole, msg=f"{kind}: {name}")
            elif name in parameters:  # DistributedDataParallel averages them
                torch.testing.assert_close(sum(parts), whole, msg=f"{kind}: {name}")
            else:
                for part in parts:
                    torch.testing.assert_close(part, whole, msg=f"{kind}: {name}")


def far_shares(rank: int, world: int) -> dict[str, dict[str, Tensor]]:
    dist.init_process_group("gloo", rank=rank, world_size=world)
    x, g = (t.split(SPLITS[world])[rank] for t in far_from_zero())
    found = findings(synchronise(nn.BatchNorm2d(4)), x, g)
    dist.destroy_process_group()
    return {"far": found}


def far_from_zero() -> tuple[Tensor, Tensor]:
    """x around 10,000 and ∂L/∂y, in float32, whose numbers there lie 0.001 apart."""
    x, g = batch("2d")
    return (x + 1e4).float(), g.float()


def test_a_large_mean_cancels_nothing(tmp_path: Path) -> None:
    """Squares of 10⁴ would leave a variance of 7 to the last digits of 10⁸; float32 has 7 of them.

    Compared with BatchNorm in float64 on the whole batch, of the same numbers.
    """
    ranks = [found["far"] for found in call_group(far_shares, 2, tmp_path)]
    x, g = (t.double() for t in far_from_zero())
    expected = findings(nn.BatchNorm2d(4).double(), x, g)
    for name in ("y", "x"):
        together = torch.cat([found[name] for found in ranks]).double()
        torch.testing.assert_close(together, expected[name], rtol=1e-3, atol=1e-3, msg=name)
    for name in ("weight", "bias"):
        total = sum(found[name] for found in ranks).double()
        torch.testing.assert_close(total, expected[name], rtol=1e-3, atol=1e-2, msg=name)
    for found in ranks:
        var = found["running_var"].double()
        torch.testing.assert_close(var, expected["running_var"], rtol=1e-4, atol=0)


@pytest.mark.parametrize("kind", NORMS)
def test_alone_it_is_the_norm(kind: str) -> None:
    ours, theirs = synchronise(norm_of(kind)), norm_of(kind)
    assert isinstance(ours, SynchronisedBatchNorm)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    found, expected = (findings(norm, *batch(kind)) for norm in (ours, theirs))
    for name, whole in expected.items():
        torch.testing.assert_close(found[name], whole, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("name", ["densenet121", "resnet18"])
def test_a_converted_network_keeps_blocks_activations_and_keys(name: str) -> None:
    torch.manual_seed(0)
    model = senet.attach(timm.create_model(name, num_classes=3))
    x = torch.randn(2, 3, 64, 64)
    keys = list(model.state_dict())
    blocks = sum(isinstance(m, SqueezeExcite) for m in model.modules())
    before = model.eval()(x)
    parameters = [id(p) for p in model.parameters()]
    assert synchronise(model) is model
    assert [id(p) for p in model.parameters()] == parameters
    assert list(model.state_dict()) == keys
    assert sum(isinstance(m, SqueezeExcite) for m in model.modules()) == blocks
    assert not any(type(m) in (nn.BatchNorm2d, BatchNormAct2d) for m in model.modules())
    torch.testing.assert_close(model(x), before)


def test_a_vector_is_no_batch() -> None:
    with pytest.raises(ValueError, match="at least 2D"):
        synchronise(nn.BatchNorm1d(4))(torch.randn(4))
