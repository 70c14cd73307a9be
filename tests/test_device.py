"""Choices of device and precision on machines that this one is not: PyTorch's answers are replaced."""

from typing import Any

import pytest
import torch

from engine.device import choose_compile, choose_dtype, find_device, peak_flops
from engine.errors import UserError

CUDA = torch.device("cuda", 0)


def pretend(monkeypatch: pytest.MonkeyPatch, **answers: Any) -> None:
    """Let functions of torch.cuda return these values."""
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, _answer=answer, **__: _answer)


@pytest.mark.parametrize(
    ("capability", "built_for", "runs"),
    [
        ((8, 0), ["sm_75", "sm_80", "sm_90"], True),
        ((8, 9), ["sm_75", "sm_80", "sm_90"], True),  # sm_80 serves all of 8.x
        ((7, 0), ["sm_75", "sm_80", "sm_90"], False),
        ((10, 0), ["sm_80", "sm_90a"], False),
        ((12, 0), ["sm_80", "compute_90"], True),  # compiled by the driver
    ],
)
def test_a_gpu_without_kernels_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], built_for: list[str], runs: bool
) -> None:
    pretend(
        monkeypatch, is_available=True, device_count=1, get_device_capability=capability,
        get_arch_list=built_for, get_device_name="Tesla",
    )  # fmt: skip
    if runs:
        assert find_device("auto") == torch.device("cuda")
    else:
        with pytest.raises(UserError, match=rf"Tesla has compute capability {capability[0]}\..*--device=cpu"):
            find_device("auto")


def test_a_driver_that_is_too_old_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def init() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).")

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", init)
    pretend(monkeypatch, is_available=False)
    for wanted in ("auto", "cuda"):
        with pytest.raises(UserError, match=r"driver is too old.*CUDA 13\.0.*--device=cpu"):
            find_device(wanted)
    assert find_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200 NVL", 835e12),
        ("NVIDIA H20", 148e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA A10", 125e12),
        ("NVIDIA A10G", 70e12),
        ("Tesla V100-SXM2-16GB", 125e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("AMD Instinct MI300X", 1307e12),
        ("AMD Instinct MI250X / MI250", None),
        ("NVIDIA H1000", None),
    ],
)
def test_the_peak_is_that_of_this_very_card_or_unknown(
    monkeypatch: pytest.MonkeyPatch, name: str, peak: float | None
) -> None:
    pretend(monkeypatch, get_device_name=name)
    assert peak_flops(CUDA, "bfloat16") == peak
    assert peak_flops(CUDA, "float32") is None


@pytest.mark.parametrize("bf16", [True, False])
def test_a_gpu_without_bf16_gets_fp16(monkeypatch: pytest.MonkeyPatch, bf16: bool) -> None:
    pretend(monkeypatch, is_bf16_supported=bf16)
    assert choose_dtype("auto", CUDA) == ("bfloat16" if bf16 else "float16")


def test_a_gpu_too_old_for_triton_is_not_compiled_for(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, get_device_capability=(6, 1))
    compiled, reason = choose_compile("auto", CUDA)
    assert not compiled and "older" in reason
