"""What runs the forward passes: PyTorch anywhere, OpenVINO on a CPU, behind one interface."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from ctnet_nnunet.errors import SetupError
from ctnet_nnunet.inference.model import Model
from ctnet_nnunet.precision import autocast, bfloat16_supported

ENGINES = ("auto", "torch", "openvino")


class Engine(Protocol):
    """Forward passes of one model.

    Attributes:
        name: ``torch`` or ``openvino``.
        precision: ``float32``, ``bf16`` or ``fp16``, for the record of a run.
        device: Where patches go and logits come from.
    """

    name: str
    precision: str
    device: torch.device

    def use_fold(self, fold: int) -> None:
        """Take the weights of ``model.weights[fold]`` for what follows."""

    def run(self, patches: Iterable[Tensor]) -> Iterator[Tensor]:
        """Logits (1, heads, *patch) in float32 for each patch (1, C, *patch), in order; both live on ``device``."""


class TorchEngine:
    """PyTorch; ``low_precision`` is bf16 (fp16 on older GPUs) where the device has it."""

    name = "torch"

    def __init__(self, model: Model, device: torch.device, low_precision: bool) -> None:
        self.model, self.device, self.low_precision = model, device, low_precision
        self.precision = _torch_precision(device, low_precision)
        self._layout = torch.contiguous_format
        self._network = model.network.eval()
        if self.precision != "float32" and len(model.configuration.patch_size) == 3:
            self._layout = torch.channels_last_3d  # bf16 convolutions of a CPU take half the time in it
            self._network = self._network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self._network = self._network.to(device)

    def use_fold(self, fold: int) -> None:
        self._network.load_state_dict(self.model.weights[fold])

    def run(self, patches: Iterable[Tensor]) -> Iterator[Tensor]:
        for patch in patches:
            # Not around the loop: between two passes the caller computes in this thread too.
            with torch.inference_mode(), autocast(self.device, self.low_precision):
                logits = self._network(patch.to(memory_format=self._layout))
            yield logits.float().contiguous()


def choose_engine(
    model: Model, device: torch.device, low_precision: bool, wanted: str, say: Callable[[str], None]
) -> Engine:
    """The engine ``wanted``; ``auto`` is OpenVINO on a CPU where it is installed, else PyTorch.

    A model that OpenVINO cannot convert runs in PyTorch, and ``say`` is told.

    Raises:
        SetupError: OpenVINO is asked for and not installed, or asked for on a GPU.
    """
    if wanted not in ENGINES:
        raise SetupError(f"--engine {wanted}: one of {', '.join(ENGINES)}")
    installed = importlib.util.find_spec("openvino") is not None
    if wanted == "openvino" and device.type != "cpu":
        raise SetupError(f"--engine openvino runs on the CPU only; leave out --device {device.type} or --engine")
    if wanted == "openvino" and not installed:
        raise SetupError("--engine openvino: not installed; run `pip install 'ctnet_nnunet[cpu]'`, or leave it out")
    if wanted == "torch" or device.type != "cpu" or not installed:
        return TorchEngine(model, device, low_precision)
    from ctnet_nnunet.inference.engine_files import stored_network
    from ctnet_nnunet.inference.engine_openvino import CannotConvertError, OpenVinoEngine

    try:
        return OpenVinoEngine(model, low_precision, lambda fold: stored_network(model, fold, say))
    except CannotConvertError as error:
        say(f"WARNING: OpenVINO cannot run this model ({error}); PyTorch is used instead")
        return TorchEngine(model, device, low_precision)


def available_threads() -> int:
    """Threads of PyTorch, which follow OMP_NUM_THREADS and the cores that this process may use."""
    return max(1, torch.get_num_threads())


def _torch_precision(device: torch.device, low_precision: bool) -> str:
    if not low_precision or device.type not in ("cpu", "cuda"):
        return "float32"
    if bfloat16_supported(device):
        return "bf16"
    return "fp16" if device.type == "cuda" else "float32"


def synchronise(device: torch.device) -> None:
    """Wait for a GPU's queue, before a clock is read."""
    if device.type == "cuda":
        with contextlib.suppress(RuntimeError):
            torch.cuda.synchronize(device)
