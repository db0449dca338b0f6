"""Products by oneDNN are torch's, in values and in both derivatives; who is not served well by it is left to torch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from zpala.rl import products
from zpala.rl.products import WORTH_IT, AffineLayer, affine, onednn_pays, vendor


@pytest.fixture
def onednn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """As on a processor where it pays, whatever this one is; the shapes of what it is given."""
    if not products._works():
        pytest.skip("this torch has no oneDNN")
    called: list[tuple[int, ...]] = []
    own = products._onednn

    def noted(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        called.append((*x.shape, weight.shape[0]))
        return own(x, weight, bias)

    monkeypatch.setattr(products, "_onednn", noted)
    monkeypatch.setattr(products, "onednn_pays", lambda: True)
    return called


def large(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-4, atol=1e-3)


def test_a_layer_and_its_gradients_are_those_in_double_precision(onednn: list[tuple[int, ...]]) -> None:
    x, gradient = large(80, 300).requires_grad_(), large(80, 128)
    layer = AffineLayer(300, 128)
    layer(x).backward(gradient)
    wide, weight, bias = (each.detach().double() for each in (x, layer.weight, layer.bias))
    assert onednn == [(80, 300, 128), (80, 128, 300), (128, 80, 300)]
    with torch.no_grad():
        close(layer(x), wide @ weight.t() + bias)
    for found, expected in ((x, gradient.double() @ weight), (layer.weight, gradient.double().t() @ wide), (layer.bias, gradient.sum(0))):
        assert found.grad is not None
        close(found.grad, expected)


def test_what_needs_no_gradient_gets_none(onednn: list[tuple[int, ...]]) -> None:
    layer = AffineLayer(300, 128)
    layer.bias.requires_grad_(False)
    layer(large(80, 300)).sum().backward()
    assert onednn == [(80, 300, 128), (128, 80, 300)]
    assert layer.bias.grad is None


def test_gradients_have_gradients(onednn: list[tuple[int, ...]]) -> None:
    x, weight = large(80, 300).requires_grad_(), large(128, 300).requires_grad_()

    def twice(times: bool) -> Tensor:
        y = affine(x, weight) if times else torch.nn.functional.linear(x, weight)
        (first,) = torch.autograd.grad(y.square().sum(), weight, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum() * 1e-9, x)
        return second

    close(twice(True), twice(False))
    assert len(onednn) > 3


def test_strides_do_not_matter(onednn: list[tuple[int, ...]]) -> None:
    x, weight, bias = large(300, 80).t(), large(300, 256).t()[::2], large(128)
    close(affine(x, weight, bias), x.double() @ weight.double().t() + bias.double())
    assert onednn == [(80, 300, 128)]


@pytest.mark.parametrize(
    ("x", "weight"),
    [
        (large(63, 64), large(64, 64)),  # small
        (large(80, 300).double(), large(128, 300).double()),
        (large(4, 20, 300), large(128, 300)),
    ],
)
def test_the_rest_is_torchs(onednn: list[tuple[int, ...]], x: Tensor, weight: Tensor) -> None:
    assert torch.equal(affine(x, weight), torch.nn.functional.linear(x, weight))
    with torch.autocast("cpu", torch.bfloat16):
        assert affine(large(80, 300), large(128, 300)).dtype is torch.bfloat16
    assert onednn == []


def test_a_compiler_has_its_own_way(onednn: list[tuple[int, ...]]) -> None:
    layer, x = AffineLayer(300, 128), large(80, 300)
    compiled = torch.compile(layer, backend="aot_eager")
    close(compiled(x), x.double() @ layer.weight.double().t() + layer.bias.double())
    assert onednn == []
    layer(x)
    assert onednn == [(80, 300, 128)]
    torch._dynamo.reset()


def test_the_smallest_product_that_is_worth_it(onednn: list[tuple[int, ...]]) -> None:
    rows = WORTH_IT // 128**2
    affine(large(rows - 1, 128), large(128, 128))
    assert onednn == []
    affine(large(rows, 128), large(128, 128))
    assert onednn == [(rows, 128, 128)]


@pytest.mark.parametrize(
    ("capability", "maker", "works", "pays"),
    [
        ("AVX512", "AuthenticAMD", True, True),
        ("AVX512", "AuthenticAMD", False, False),
        ("AVX512", "GenuineIntel", True, False),
        ("AVX512", "", True, False),
        ("AVX2", "AuthenticAMD", True, False),
    ],
)
def test_it_is_the_processor_that_decides(monkeypatch: pytest.MonkeyPatch, capability: str, maker: str, works: bool, pays: bool) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(products, "vendor", lambda: maker)
    monkeypatch.setattr(products, "_works", lambda: works)
    assert onednn_pays.__wrapped__() is pays


def test_a_torch_without_the_operator_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*arguments: object) -> Tensor:
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_linear_pointwise'")

    monkeypatch.setattr(products, "_onednn", missing)
    assert not products._works()
    monkeypatch.setattr(products, "_onednn", lambda x, weight, bias: x @ weight.t())  # another meaning: the bias is gone
    assert not products._works()


def test_the_maker_is_what_the_processor_says(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    assert vendor.__wrapped__(cpuinfo) == ""
    cpuinfo.write_text("processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: any\n\nprocessor\t: 1\nvendor_id\t: Other\n")
    assert vendor.__wrapped__(cpuinfo) == "AuthenticAMD"
    cpuinfo.write_text("Processor\t: ARMv8\n")
    assert vendor.__wrapped__(cpuinfo) == ""
