"""NumPy's tangent is torch's, in values and in both derivatives; who is not served well by it is left to torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from zpala.rl import tanh as module
from zpala.rl.tanh import WORTH_IT, numpy_pays, tanh
from zpala.rl.trunks import MLP


@pytest.fixture
def numpys(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """As on a processor where it pays, whatever this one is; the shapes of what it is given."""
    called: list[tuple[int, ...]] = []
    own = module._numpys

    def noted(x: Tensor) -> Tensor:
        called.append(tuple(x.shape))
        return own(x)

    monkeypatch.setattr(module, "_numpys", noted)
    monkeypatch.setattr(module, "numpy_pays", lambda: True)
    return called


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_values_are_exact_to_the_last_digit_everywhere(numpys: list[tuple[int, ...]]) -> None:
    x = torch.cat(
        [torch.linspace(-12.0, 12.0, 100_001), torch.logspace(-30, 1, 10_001), torch.tensor([0.0, -0.0, 1e30, torch.inf, -torch.inf])]
    )
    expected = x.double().tanh()
    found = tanh(x)
    assert numpys == [(len(x),)]
    assert found.dtype is torch.float32
    assert bool((found.double() - expected).abs().le(2.5e-7 * expected.abs()).all())
    assert bool(tanh(torch.full((WORTH_IT,), torch.nan)).isnan().all())


def test_gradients_are_those_in_double_precision(numpys: list[tuple[int, ...]]) -> None:
    x, gradient = drawn(64, 64).requires_grad_(), drawn(64, 63)[:, :1] * torch.ones(64)
    (found,) = torch.autograd.grad(tanh(x), x, gradient)
    assert numpys == [(64, 64)]
    wide = x.detach().double()
    torch.testing.assert_close(found.double(), gradient.double() / wide.cosh().square(), rtol=1e-5, atol=1e-6)


def test_gradients_have_gradients(numpys: list[tuple[int, ...]]) -> None:
    def twice(x: Tensor) -> Tensor:
        (first,) = torch.autograd.grad(tanh(x).square().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x)
        return second

    x = drawn(64, 64)
    torch.testing.assert_close(twice(x.clone().requires_grad_()).double(), twice(x.double().requires_grad_()), rtol=1e-4, atol=1e-5)
    assert numpys == [(64, 64)]


def test_strides_do_not_matter_and_nothing_is_overwritten(numpys: list[tuple[int, ...]]) -> None:
    x = drawn(128, 64)
    before = x.clone()
    assert torch.equal(tanh(x.t()), tanh(x).t())
    assert torch.equal(tanh(x[::2]), tanh(x)[::2])
    assert torch.equal(x, before)
    assert len(numpys) == 4
    with torch.inference_mode():
        assert torch.equal(tanh(x + 0.0), tanh(x))


def test_what_needs_no_gradient_has_none(numpys: list[tuple[int, ...]]) -> None:
    x = drawn(64, 64).requires_grad_()
    with torch.no_grad():
        assert not tanh(x).requires_grad
    assert not tanh(x.detach()).requires_grad
    assert len(numpys) == 2


@pytest.mark.parametrize("x", [drawn(WORTH_IT - 1), drawn(64, 64).double(), drawn(64, 64).bfloat16()])
def test_the_rest_is_torchs(numpys: list[tuple[int, ...]], x: Tensor) -> None:
    assert torch.equal(tanh(x), torch.tanh(x))
    assert numpys == []


def test_a_compiler_has_its_own_way(numpys: list[tuple[int, ...]]) -> None:
    compiled, x = torch.compile(tanh, backend="aot_eager"), drawn(64, 64)
    torch.testing.assert_close(compiled(x), tanh(x), rtol=1e-6, atol=1e-6)
    assert numpys == [(64, 64)]
    torch._dynamo.reset()


def test_the_trunk_of_vectors_computes_it(numpys: list[tuple[int, ...]]) -> None:
    trunk = MLP((4,), [64, 32], "tanh")
    with torch.no_grad():
        for parameter in trunk.parameters():
            parameter.copy_(drawn(*parameter.shape))
    x = drawn(100, 4)
    expected = x.double().numpy()
    for layer in trunk.hidden:
        weight, bias = (parameter.detach().double().numpy() for parameter in layer.parameters())
        expected = np.tanh(expected @ weight.T + bias)
    np.testing.assert_allclose(trunk(x).detach().numpy(), expected, rtol=1e-4, atol=1e-5)
    assert numpys == [(100, 64), (100, 32)]


@pytest.mark.parametrize(
    ("capability", "maker", "mkl", "pays"),
    [
        ("AVX512", "AuthenticAMD", True, True),
        ("AVX2", "AuthenticAMD", True, True),
        ("DEFAULT", "AuthenticAMD", True, False),
        ("AVX512", "AuthenticAMD", False, False),
        ("AVX512", "GenuineIntel", True, False),
        ("AVX512", "", True, False),
    ],
)
def test_it_is_the_processor_that_decides(monkeypatch: pytest.MonkeyPatch, capability: str, maker: str, mkl: bool, pays: bool) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: mkl)
    monkeypatch.setattr(module, "vendor", lambda: maker)
    assert numpy_pays.__wrapped__() is pays
