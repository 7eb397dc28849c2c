"""bf16 where the device computes in it, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ctnet_nnunet import precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    precision._cpu_has_bfloat16.cache_clear()
    yield
    precision._cpu_has_bfloat16.cache_clear()


def product_type(device: torch.device, enabled: bool = True) -> torch.dtype:
    with precision.autocast(device, enabled):
        return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype


@pytest.mark.parametrize(("flags", "supported"), [
    ("flags\t\t: fpu avx2 avx512_bf16 sse", True), ("flags : fpu amx_bf16", True), ("Features\t: fp asimd bf16", True),
    ("flags : fpu avx2 avx512f", False), ("flags : not_avx512_bf16x", False), ("model name : bf16", False), ("", False),
])  # fmt: skip
def test_the_cpus_own_flags_decide(
    flags: str, supported: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor : 0\n{flags}\n")
    monkeypatch.setattr(precision, "Path", lambda name: tmp_path / "cpuinfo")
    assert precision.bfloat16_supported(CPU) is supported
    assert product_type(CPU) is (torch.bfloat16 if supported else torch.float32)
    assert product_type(CPU, enabled=False) is torch.float32


def test_without_that_file_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "Path", lambda name: tmp_path / "none")
    assert precision.bfloat16_supported(CPU) is False


@pytest.mark.parametrize(("native", "expected"), [(True, torch.bfloat16), (False, torch.float16)])
def test_older_gpus_get_fp16(native: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    def is_bf16_supported(including_emulation: bool = True) -> bool:
        return native or including_emulation

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)
    context = precision.autocast(CUDA, enabled=True)
    assert (context.device, context.fast_dtype) == ("cuda", expected)


def test_other_devices_compute_in_float32() -> None:
    assert precision.bfloat16_supported(torch.device("mps")) is False
    assert product_type(torch.device("mps")) is torch.float32


@pytest.mark.parametrize(("depth", "kernel", "stride"), [(2, 3, 1), (2, 3, (1, 2, 2)), (3, 4, 1), (4, 3, 1)])
def test_gradients_of_shallow_volumes_are_right(
    depth: int, kernel: int, stride: int | tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under a plain bf16 autocast the first three leave a part of the gradient to what lay in memory before."""
    monkeypatch.setattr(precision, "bfloat16_supported", lambda device: True)
    convolution = torch.nn.Conv3d(16, 16, kernel, stride, padding=1)
    image = torch.randn(1, 16, depth, 6, 6)
    gradients = []
    for enabled in (False, True):
        convolution.zero_grad(set_to_none=True)
        for size in (64, 1000, 5000, 20000):  # given back at once: what the next ones find in their memory
            torch.full((size,), float("nan"))
        with precision.autocast(CPU, enabled):
            output = convolution(image)
        output.float().square().sum().backward()
        gradients.append(convolution.weight.grad)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0.05, atol=0.05 * float(gradients[0].abs().max()))
    with torch.no_grad(), precision.autocast(CPU, True):
        assert convolution(image).dtype is torch.bfloat16
