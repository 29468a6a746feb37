"""The lines of docs/algebra.md, each as it stands there, against autograd in float64.

Nothing here comes from `senet.kernels`: the page is what is tested. Letters are the page's.
"""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

N, C, S, HIDDEN = 5, 4, 6, 3
M, EPS, KAPPA = N * S, 1e-3, 1.7
LEAVES = ("x", "gamma", "beta", "W1", "b1", "W2", "b2")
DOCUMENT = Path(__file__).parents[1] / "docs" / "algebra.md"


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def drawn() -> SimpleNamespace:
    """x, the parameters and g = ∂L/∂y, all random."""
    rng = torch.Generator().manual_seed(0)
    shapes = {
        "x": (N, C, S), "g": (N, C, S), "gamma": (C,), "beta": (C,),
        "W1": (HIDDEN, C), "b1": (HIDDEN,), "W2": (C, HIDDEN), "b2": (C,),
    }  # fmt: skip
    tensors = {
        name: torch.randn(shape, generator=rng, dtype=torch.float64)
        for name, shape in shapes.items()
    }
    return SimpleNamespace(**tensors)


def composed(d: SimpleNamespace, mean: Tensor | None = None, var: Tensor | None = None) -> Any:
    """BatchNorm, then the block, operator by operator; the steps keep their gradients."""
    leaves = {name: getattr(d, name).clone().requires_grad_() for name in LEAVES}
    t = SimpleNamespace(**leaves)
    t.mu = t.x.mean((0, 2)) if mean is None else mean.clone().requires_grad_()
    centred = t.x - t.mu[:, None]
    t.sigma2 = centred.square().mean((0, 2)) if var is None else var.clone().requires_grad_()
    t.u = t.gamma[:, None] * centred / torch.sqrt(t.sigma2 + EPS)[:, None] + t.beta[:, None]
    t.z = t.u.mean(2)
    t.p = t.z @ t.W1.T + t.b1
    t.q = torch.tanh(t.p) @ t.W2.T + t.b2
    t.s = KAPPA * torch.sigmoid(t.q)
    t.y = t.s[:, :, None] * t.u
    for step in (t.u, t.z, t.p, t.q, t.s, t.mu, t.sigma2):
        step.retain_grad()
    t.y.backward(d.g)
    return t


def by_the_page(d: SimpleNamespace) -> SimpleNamespace:
    """(1) to (17), with tanh for δ and the sigmoid for σ."""
    x, g, gamma, beta = d.x, d.g, d.gamma, d.beta
    f = SimpleNamespace()
    f.m = torch.einsum("nci->nc", x) / S
    f.v = torch.einsum("nci->nc", (x - f.m[:, :, None]) ** 2) / S
    f.mu = torch.einsum("nc->c", f.m) / N
    f.sigma2 = torch.einsum("nc->c", f.v) / N + torch.einsum("nc->c", (f.m - f.mu) ** 2) / N
    f.r = 1 / torch.sqrt(f.sigma2 + EPS)
    f.a = gamma * f.r
    f.z = f.a * (f.m - f.mu) + beta
    f.p = torch.einsum("jc,nc->nj", d.W1, f.z) + d.b1
    f.q = torch.einsum("cj,nj->nc", d.W2, torch.tanh(f.p)) + d.b2
    f.s = KAPPA * torch.sigmoid(f.q)
    sa = f.s * f.a
    f.y = sa[:, :, None] * (x - f.mu[:, None]) + (f.s * beta)[:, :, None]
    f.S0 = torch.einsum("nci->nc", g)
    f.S1 = torch.einsum("nci->nc", g * (x - f.mu[:, None]))
    f.ds = f.a * f.S1 + beta * f.S0
    f.dq = KAPPA * torch.sigmoid(f.q) * (1 - torch.sigmoid(f.q)) * f.ds
    f.dW2 = torch.einsum("nc,nj->cj", f.dq, torch.tanh(f.p))
    f.db2 = torch.einsum("nc->c", f.dq)
    f.dp = (1 - torch.tanh(f.p) ** 2) * torch.einsum("nc,cj->nj", f.dq, d.W2)
    f.dW1 = torch.einsum("nj,nc->jc", f.dp, f.z)
    f.db1 = torch.einsum("nj->j", f.dp)
    f.zeta = torch.einsum("nj,jc->nc", f.dp, d.W1)
    f.du = f.s[:, :, None] * g + f.zeta[:, :, None] / S
    f.dbeta = torch.einsum("nc->c", f.s * f.S0 + f.zeta)
    f.dgamma = torch.einsum("nc->c", f.s * f.r * f.S1 + f.zeta * (f.m - f.mu) * f.r)
    f.dsigma2 = -f.a * f.r * f.dgamma / 2
    f.dmu = -f.a * f.dbeta
    centred = x - f.mu[:, None]
    inside = f.du - f.dbeta[:, None] / M - centred * (f.r * f.dgamma)[:, None] / M
    f.dx = f.a[:, None] * inside
    return f


@pytest.fixture(scope="module")
def d() -> SimpleNamespace:
    return drawn()


@pytest.fixture(scope="module")
def f(d: SimpleNamespace) -> SimpleNamespace:
    return by_the_page(d)


@pytest.fixture(scope="module")
def t(d: SimpleNamespace) -> SimpleNamespace:
    return composed(d)


def test_total_variance(d: SimpleNamespace, f: SimpleNamespace) -> None:
    """(1), (2): moments of samples give those of the batch, also with uneven shares (20)."""
    close(f.mu, d.x.mean((0, 2)))
    close(f.sigma2, d.x.var((0, 2), correction=0))


def test_squeeze_without_a_pass(d: SimpleNamespace, f: SimpleNamespace) -> None:
    """(3), (4)."""
    u = F.batch_norm(d.x, None, None, d.gamma, d.beta, True, 0.0, EPS)
    close(f.a[:, None] * (d.x - f.mu[:, None]) + d.beta[:, None], u)
    close(f.z, u.mean(2))


def test_one_affine_map(d: SimpleNamespace, f: SimpleNamespace, t: SimpleNamespace) -> None:
    """(5), (6), the second form too."""
    close(f.s, t.s)
    close(f.y, t.y)
    shift = f.s * (d.beta - f.a * f.mu)
    close((f.s * f.a)[:, :, None] * d.x + shift[:, :, None], t.y)


def test_running_statistics(d: SimpleNamespace, f: SimpleNamespace) -> None:
    """(7)."""
    mean, var, alpha = torch.ones(C).double(), torch.full((C,), 2.0).double(), 0.3
    ours = (1 - alpha) * mean + alpha * f.mu, (1 - alpha) * var + alpha * f.sigma2 * M / (M - 1)
    F.batch_norm(d.x, mean, var, training=True, momentum=alpha)
    close(ours[0], mean)
    close(ours[1], var)


def test_gradient_of_the_gate(f: SimpleNamespace, t: SimpleNamespace) -> None:
    """(8), (9)."""
    close(f.ds, t.s.grad)


def test_backward_of_the_block(f: SimpleNamespace, t: SimpleNamespace) -> None:
    """(10)."""
    close(f.dq, t.q.grad)
    close(f.dp, t.p.grad)
    close(f.zeta, t.z.grad)
    for name in ("W1", "b1", "W2", "b2"):
        close(getattr(f, f"d{name}"), getattr(t, name).grad)


def test_gradient_of_the_norms_output(f: SimpleNamespace, t: SimpleNamespace) -> None:
    """(11)."""
    close(f.du, t.u.grad)


def test_gradients_of_the_affine(f: SimpleNamespace, t: SimpleNamespace) -> None:
    """(12), (13)."""
    close(f.dbeta, t.beta.grad)
    close(f.dgamma, t.gamma.grad)


def test_gradients_through_the_statistics(f: SimpleNamespace, t: SimpleNamespace) -> None:
    """(14), (15): what reaches the mean through the variance is nothing."""
    close(f.dsigma2, t.sigma2.grad)
    close(f.dmu, t.mu.grad)


def test_gradient_of_the_input(d: SimpleNamespace, f: SimpleNamespace, t: SimpleNamespace) -> None:
    """(16), from its three paths, and (17), the map that a pass writes."""
    close(f.dx, t.x.grad)
    paths = f.a[:, None] * f.du + f.dmu[:, None] / M
    close(paths + (f.dsigma2[:, None] * 2 * (d.x - f.mu[:, None])) / M, t.x.grad)
    slope = -f.a * f.r * f.dgamma / M
    shift = f.a * (f.zeta / S - f.dbeta / M) - slope * f.mu
    sa = f.s * f.a
    close(sa[:, :, None] * d.g + slope[:, None] * d.x + shift[:, :, None], t.x.grad)


def test_what_normalising_takes_out(
    d: SimpleNamespace, f: SimpleNamespace, t: SimpleNamespace
) -> None:
    """(18): nothing along 1, and along x − μ only what ε leaves."""
    close(t.x.grad.sum((0, 2)), torch.zeros(C).double())
    along = (t.x.grad * (d.x - f.mu[:, None])).sum((0, 2))
    close(along, EPS * f.a * f.r * f.dgamma)


def test_fixed_statistics(d: SimpleNamespace) -> None:
    """(19): two paths fewer, and (12), (13) as they were."""
    mean, var = torch.randn(C).double(), torch.rand(C).double() + 0.5
    t = composed(d, mean, var)
    r = 1 / torch.sqrt(var + EPS)
    a = d.gamma * r
    s, zeta = t.s.detach(), t.z.grad
    close(a[:, None] * (s[:, :, None] * d.g + zeta[:, :, None] / S), t.x.grad)
    S0, S1 = d.g.sum(2), (d.g * (d.x - mean[:, None])).sum(2)
    close((s * S0 + zeta).sum(0), t.beta.grad)
    close((s * r * S1 + zeta * (d.x.mean(2) - mean) * r).sum(0), t.gamma.grad)


SHARES = (2, 3)
"""Samples of each process, so that the processes do not weigh the same."""


def test_statistics_over_processes(d: SimpleNamespace, f: SimpleNamespace) -> None:
    """(20)."""
    parts = d.x.split(SHARES)
    weights = [n * S / M for n in SHARES]
    mus = [part.mean((0, 2)) for part in parts]
    sigmas = [part.var((0, 2), correction=0) for part in parts]
    mu = sum(w * m for w, m in zip(weights, mus, strict=True))
    close(mu, f.mu)
    shares = zip(weights, sigmas, mus, strict=True)
    close(sum(w * (v + (m - mu) ** 2) for w, v, m in shares), f.sigma2)
    assert (sum(mus) / 2 - f.mu).abs().max() > 1e-3  # unweighted means are something else


def test_gradients_over_processes(d: SimpleNamespace, f: SimpleNamespace, t: Any) -> None:
    """(21), (22): the sums of all for ∂x; a process's own sums for its parameters."""
    betas, gammas = [], []
    for s, S0, S1, zeta, m in zip(
        *(v.split(SHARES) for v in (f.s, f.S0, f.S1, f.zeta, f.m)), strict=True
    ):
        betas.append((s * S0 + zeta).sum(0))
        gammas.append((s * f.r * S1 + zeta * (m - f.mu) * f.r).sum(0))
    beta, gamma = sum(betas), sum(gammas)
    start = 0
    for size in SHARES:
        own = slice(start, start + size)
        centred = d.x[own] - f.mu[:, None]
        inside = f.du[own] - (beta / M)[:, None] - centred * (f.r * gamma / M)[:, None]
        close(f.a[:, None] * inside, t.x.grad[own])
        start += size
    # DDP's mean over two processes is half the whole batch's gradient where each gives its own
    # sum, as for any other parameter; with the sums of all from each it is the whole.
    close(sum(gammas) / 2, t.gamma.grad / 2)
    close(sum([gamma, gamma]) / 2, t.gamma.grad)


def test_deviations_keep_the_digits() -> None:
    """(23): in float32, mean 10⁴ and unit variance; moments about zero lose the variance."""
    x = torch.randn(4, 3, 400, generator=torch.Generator().manual_seed(1)) + 1e4
    truth = x.double()
    m = x.mean(2)
    mu = m[0] + (m - m[0]).mean(0)
    v = (x - m[:, :, None]).square().mean(2)
    sigma2 = v.mean(0) + (m - mu).square().mean(0)
    exact = truth.var((0, 2), correction=0)
    about_zero = x.square().mean((0, 2)) - x.mean((0, 2)) ** 2
    assert ((sigma2 - exact).abs() / exact).max() < 1e-4
    assert ((about_zero - exact).abs() / exact).max() > 0.5


def test_the_mean_of_means_keeps_the_digits() -> None:
    """(23): exact to the rounding of μ itself, where a sum of the means loses digits."""
    m = 1e4 + torch.randn(1000, 50, generator=torch.Generator().manual_seed(1))
    truth = m.double().mean(0)
    mu = m[0] + (m - m[0]).mean(0)
    summed = torch.zeros(50)
    for one in m:  # one after the other, as the samples of a reduction may be taken
        summed = summed + one
    unit = torch.finfo(torch.float32).eps * 2**13  # of float32 at 10⁴
    assert (mu - truth).abs().max() <= 0.51 * unit
    assert (summed / len(m) - truth).abs().max() > 2 * unit


def test_warm_start_is_the_identity(d: SimpleNamespace) -> None:
    """(24): exactly one; and the first step moves W₂ and b₂ but not W₁."""
    u = d.x.clone()
    W1, W2 = d.W1.clone().requires_grad_(), torch.zeros(C, HIDDEN).double().requires_grad_()
    for sigma in (torch.sigmoid, F.hardsigmoid):
        kappa = 1 / sigma(torch.zeros(()).double())
        s = kappa * sigma(torch.relu(u.mean(2) @ W1.T + d.b1) @ W2.T)
        assert torch.equal(u * s[:, :, None], u)
    (u * s[:, :, None] * d.g).sum().backward()
    assert W2.grad is not None
    assert W2.grad.abs().max() > 0
    assert W1.grad is not None
    assert not W1.grad.any()


def test_a_folded_norm(d: SimpleNamespace) -> None:
    """(25), with padding: zeros are padded before the convolution, and it stays one."""
    h, W = torch.randn(2, 3, 9).double(), torch.randn(C, 3, 3).double()
    mean, var = torch.randn(C).double(), torch.rand(C).double() + 0.5
    u = F.conv1d(h, W, d.b2, padding=1)
    expected = F.batch_norm(u, mean, var, d.gamma, d.beta, False, 0.0, EPS)
    alpha = d.gamma / torch.sqrt(var + EPS)
    bias = alpha * d.b2 + d.beta - alpha * mean
    close(F.conv1d(h, alpha[:, None, None] * W, bias, padding=1), expected)


def read_by(tap: int, output: int, stride: int, dilation: int, before: int) -> int:
    """(26): the position, perhaps outside."""
    return output * stride + tap * dilation - before


PADDING = {
    "zeros": lambda i, n: i if 0 <= i < n else None,
    "circular": lambda i, n: i % n,
    "replicate": lambda i, n: min(max(i, 0), n - 1),
    "reflect": lambda i, n: (n - 1) - abs((n - 1) - abs(i)),
}
"""(28): where a position outside 0 … n − 1 is taken from."""


def counts(
    n: int, kernel: int, outputs: int, stride: int, dilation: int, before: int, mode: str
) -> Tensor:
    """(27): R (kernel, n), how often tap k reads position i."""
    R = torch.zeros(kernel, n).double()
    for tap in range(kernel):
        for output in range(outputs):
            i = PADDING[mode](read_by(tap, output, stride, dilation, before), n)
            if i is not None:
                R[tap, i] += 1
    return R


@pytest.mark.parametrize("mode", PADDING)
@pytest.mark.parametrize("groups", [1, 2])
def test_mean_of_a_convolution(mode: str, groups: int) -> None:
    """(26) to (30): two dimensions, unlike in everything, t = R h Cᵀ."""
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(
        4, 6, (3, 2), stride=(2, 3), padding=(2, 1), dilation=(1, 2), groups=groups,
        padding_mode=mode,
    ).double()  # fmt: skip
    h = torch.randn(2, 4, 7, 8).double()
    u = conv(h)
    rows_, columns = u.shape[2:]
    R = counts(7, 3, rows_, 2, 1, 2, mode)
    K = counts(8, 2, columns, 3, 2, 1, mode)
    t = R @ h @ K.T / (rows_ * columns)
    assert t.shape == (2, 4, 3, 2)
    assert conv.bias is not None
    # A group's outputs see its own inputs only: block-diagonal, W is.
    means = [
        torch.einsum("cdkl,ndkl->nc", W, part)
        for W, part in zip(conv.weight.chunk(groups), t.chunk(groups, 1), strict=True)
    ]
    close(torch.cat(means, 1) + conv.bias, u.mean((2, 3)))


def test_mean_of_a_pointwise_convolution() -> None:
    """(29): a mean over the lattice that the stride visits."""
    torch.manual_seed(0)
    h, W = torch.randn(2, 4, 7, 8).double(), torch.randn(6, 4, 1, 1).double()
    lattice = h[:, :, ::2, ::3].mean((2, 3))
    close(lattice @ W[:, :, 0, 0].T, F.conv2d(h, W, stride=(2, 3)).mean((2, 3)))


def test_first_layer_in_the_convolution(d: SimpleNamespace) -> None:
    """(31)."""
    t, W, b = torch.randn(2, 8).double(), torch.randn(C, 8).double(), d.beta
    composed_ = (t @ W.T + b) @ d.W1.T + d.b1
    close(t @ (d.W1 @ W).T + (d.W1 @ b + d.b1), composed_)


def test_scale_is_an_epilogue(d: SimpleNamespace) -> None:
    """(32): s may stand before or after the convolution; after, its weights are one for all."""
    h, W, s = (
        torch.randn(N, 3, 9).double(),
        torch.randn(C, 3, 3).double(),
        torch.rand(N, C).double(),
    )
    after = s[:, :, None] * F.conv1d(h, W, d.b2)
    each = [F.conv1d(h[n : n + 1], s[n][:, None, None] * W, s[n] * d.b2) for n in range(N)]
    close(torch.cat(each), after)


def test_the_page_names_tests_that_exist() -> None:
    named = set(re.findall(r"\btest_[a-z0-9_]+(?!\w|\.py)", DOCUMENT.read_text()))
    defined = {
        name
        for file in Path(__file__).parent.rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", file.read_text(), re.MULTILINE)
    }
    assert named <= defined, named - defined
    here = set(re.findall(r"^def (test_\w+)", Path(__file__).read_text(), re.MULTILINE))
    assert here - named == {"test_the_page_names_tests_that_exist", "test_every_line_is_numbered"}


def test_every_line_is_numbered() -> None:
    numbers = [
        int(n) for n in re.findall(r"^\*\*\((\d+)\)\*\*", DOCUMENT.read_text(), re.MULTILINE)
    ]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) >= 30
