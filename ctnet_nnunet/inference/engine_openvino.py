"""OpenVINO on the CPU: each fold's network is converted and compiled once for the plan's patch, and kept.

A fusion of pairs of sequences is converted once more for scans without pair a, and without pair b.
"""

from __future__ import annotations

import copy
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ctnet_nnunet.architectures.cross_modality import CMFFNet
from ctnet_nnunet.errors import SetupError
from ctnet_nnunet.inference.engine import available_threads
from ctnet_nnunet.inference.model import Model
from ctnet_nnunet.precision import bfloat16_supported


class CannotConvertError(Exception):
    """A network that OpenVINO's importer does not know; ``str`` is the reason in one line."""


class OpenVinoEngine:
    """Forward passes of a model's folds, several in flight.

    Args:
        model: The folds are converted when they are first used.
        low_precision: bf16 where the processor has it; else, and without, float32.
        stored: Gives a fold's network where it is already converted, else None.

    Raises:
        CannotConvertError: When the first fold's network cannot be converted.
    """

    name = "openvino"

    def __init__(
        self, model: Model, low_precision: bool, stored: Callable[[int], Any | None] = lambda fold: None
    ) -> None:
        self.model, self.device, self._stored = model, torch.device("cpu"), stored
        self.precision = "bf16" if low_precision and bfloat16_supported(self.device) else "float32"
        self._openvino = import_without_telemetry()
        self._compiled: dict[tuple[int, str | None], list[Any]] = {}
        self._requests: list[Any] = []
        self.use_fold(0)

    def use_fold(self, fold: int) -> None:
        # Which branches of a fusion run depends on the pairs that a scan has, and a converted graph has no branches.
        absent = self.model.network.absent if isinstance(self.model.network, CMFFNet) else None
        if (fold, absent) not in self._compiled:
            shape = (1, self.model.channels, *self.model.configuration.patch_size)
            stored = self._stored(fold) if absent is None else None
            network = stored or convert(self.model.network, self.model.weights[fold], shape)
            self._compiled[fold, absent] = self._compile(network)
        self._requests = self._compiled[fold, absent]

    def run(self, patches: Iterable[Tensor]) -> Iterator[Tensor]:
        free, busy = deque(self._requests), deque[tuple[Any, Tensor]]()
        try:
            for patch in patches:
                if not free:
                    yield _take(busy, free)
                request = free.popleft()
                request.start_async([patch.numpy()], share_inputs=True)
                busy.append((request, patch))  # the patch must live as long as the request reads it
            while busy:
                yield _take(busy, free)
        finally:
            for request, _ in busy:
                request.wait()

    def _compile(self, converted: Any) -> list[Any]:
        threads = available_threads()
        settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if self.precision == "bf16" else "f32",
            "EXECUTION_MODE_HINT": "PERFORMANCE" if self.precision == "bf16" else "ACCURACY",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
        }
        try:
            compiled = self._openvino.Core().compile_model(converted, "CPU", settings)
        except RuntimeError as error:
            raise CannotConvertError(_reason(error)) from None
        # One waits while another computes, so that mirroring and summing cost no time of the network's.
        return [compiled.create_infer_request() for _ in range(2)]


def convert(network: nn.Module, weights: Any, shape: tuple[int, ...]) -> Any:
    """The network with these weights as an OpenVINO model of the input ``shape`` (1, C, *patch).

    Raises:
        CannotConvertError: With the importer's reason.
    """
    openvino = import_without_telemetry()
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    # A copy: OpenVINO's constants share the memory of the traced weights, which the next fold would overwrite.
    network = copy.deepcopy(network).cpu().eval()
    network.load_state_dict(weights)
    example = torch.zeros(shape)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # the tracer's advice on branches that depend on the (fixed) shape
            traced = torch.jit.trace(network, example, check_trace=False)
            frontend = FrontEndManager().load_by_framework("pytorch")
            decoder = TorchScriptPythonDecoder(traced, example_input=example)  # by a name, to live until the end
            converted = frontend.convert(frontend.load(decoder))
        converted.reshape(openvino.PartialShape(list(shape)))
    except Exception as error:  # the importer raises whatever comes up in it
        raise CannotConvertError(_reason(error)) from None
    return converted


def import_without_telemetry() -> Any:
    """The module ``openvino``.

    Its import alone reports to an analytics service when ``openvino_telemetry``, which comes with it, can be imported;
    where that fails it uses a stub of its own that does nothing. Nothing leaves a machine that holds scans.

    Raises:
        SetupError: If it is broken.
    """
    if "openvino" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        import openvino
    except (ImportError, OSError) as error:
        raise SetupError(f"openvino cannot be loaded ({error}); install it again, or choose --engine torch") from None
    return openvino


def _take(busy: deque[tuple[Any, Tensor]], free: deque[Any]) -> Tensor:
    request, _ = busy.popleft()
    request.wait()
    logits = torch.from_numpy(request.get_output_tensor(0).data.copy())
    free.append(request)
    return logits


def _reason(error: Exception) -> str:
    """OpenVINO's messages begin with places in its source and end with what is wrong."""
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
