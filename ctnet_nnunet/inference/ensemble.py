"""The folds of a model over one scan: nnU-Net's own sliding window, fold by fold, so that folds can be compared."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from numpy.typing import NDArray
from torch import Tensor, nn

from ctnet_nnunet.inference.model import Model
from ctnet_nnunet.precision import autocast, bfloat16_supported

SPEEDS = ("balanced", "best")


@dataclass(frozen=True)
class Prediction:
    """One scan's labels and what the folds thought.

    Attributes:
        labels: In the scan's own grid, as nnU-Net's reader orders axes.
        properties: What the reader kept of the scan; needed to write in its grid.
        fold_labels: Fold → labels in the plan's grid (cropped and resampled); voxels of ``voxel_ml``.
        voxel_ml: Size of a voxel of the plan's grid.
        entropy: Mean entropy of the ensemble's softmax over the voxels of each label, in units of its maximum; regions
            are not exclusive and have none.
    """

    labels: NDArray[Any]
    properties: dict[str, Any]
    fold_labels: list[NDArray[Any]]
    voxel_ml: float
    entropy: dict[int, float]


@dataclass(frozen=True)
class Cost:
    """What a scan costs: forward passes are the product of the three."""

    tiles: int
    mirrors: int
    folds: int

    @property
    def passes(self) -> int:
        return self.tiles * self.mirrors * self.folds


class _Watched(nn.Module):
    """The network under autocast where asked, and a call behind each forward pass."""

    def __init__(self, network: nn.Module, low_precision: bool, passed: Callable[[], None]) -> None:
        super().__init__()
        self.network, self.low_precision, self.passed = network, low_precision, passed

    def forward(self, image: Tensor) -> Tensor:
        with autocast(image.device, self.low_precision):
            logits: Tensor = self.network(image)
        self.passed()
        return logits.float()


class Ensemble:
    """Predicts scans with all folds of a model.

    Args:
        model: From :func:`ctnet_nnunet.inference.model.load_model`.
        device: ``cpu``, ``cuda`` or ``mps``.
        speed: ``best``: float32, as ``nnUNetv2_predict`` on a CPU; ``balanced``: bf16 where the device has it. Folds,
            mirrors and steps are the same.
        passed: Called behind each forward pass.
    """

    def __init__(
        self, model: Model, device: torch.device, speed: str = "balanced", passed: Callable[[], None] = lambda: None
    ) -> None:
        self.model, self.device = model, device
        self.low_precision = speed == "balanced" and bfloat16_supported(device)
        with contextlib.redirect_stdout(io.StringIO()):  # stock prints advice on devices
            self._predictor = nnUNetPredictor(device=device, allow_tqdm=False, perform_everything_on_device=True)
        self._predictor.manual_initialization(
            _Watched(model.network, self.low_precision, passed), model.plans, model.configuration, None,
            model.dataset_json, model.trainer, model.mirror_axes,
        )  # fmt: skip

    def preprocess(self, files: Sequence[Path]) -> tuple[Tensor, dict[str, Any]]:
        """Crop, resample and normalise as in training: image (C, *grid), and what leads back to the scan's grid."""
        with contextlib.redirect_stdout(io.StringIO()):
            preprocessor = self.model.configuration.preprocessor_class(verbose=False)
            data, _, properties = preprocessor.run_case(
                [str(file) for file in files], None, self.model.plans, self.model.configuration,
                self.model.dataset_json,
            )  # fmt: skip
        return torch.from_numpy(np.ascontiguousarray(data, dtype=np.float32)), properties

    def cost(self, image: Tensor) -> Cost:
        """Of a preprocessed image (C, *grid)."""
        padded = pad_nd_image(image, self.model.configuration.patch_size, "constant", {"value": 0}, False, None)
        tiles = len(self._predictor._internal_get_sliding_window_slicers(padded.shape[1:]))
        return Cost(tiles, 2 ** len(self.model.mirror_axes or ()), len(self.model.folds))

    @torch.inference_mode()
    def predict(self, image: Tensor, properties: dict[str, Any]) -> Prediction:
        """Labels of a preprocessed image, in the scan's own grid."""
        label_manager = self.model.plans.get_label_manager(self.model.dataset_json)
        total: Tensor | None = None
        fold_labels = []
        for weights in self.model.weights:
            self.model.network.load_state_dict(weights)
            logits = self._predictor.predict_sliding_window_return_logits(image).to("cpu")
            fold_labels.append(np.asarray(label_manager.convert_logits_to_segmentation(logits)))
            total = logits if total is None else total.add_(logits)
        assert total is not None
        total /= len(self.model.weights)
        entropy = {} if label_manager.has_regions else _entropy(total)
        spacing = [float(size) for size in self.model.configuration.spacing]
        if len(spacing) == 2:
            spacing = [float(properties["spacing"][self.model.plans.transpose_forward[0]]), *spacing]
        labels = convert_predicted_logits_to_segmentation_with_correct_shape(
            total, self.model.plans, self.model.configuration, label_manager, properties,
            num_threads_torch=torch.get_num_threads(),
        )  # fmt: skip
        return Prediction(labels, properties, fold_labels, float(np.prod(spacing)) / 1000.0, entropy)


def _entropy(logits: Tensor) -> dict[int, float]:
    """Mean entropy over each label's voxels of the ensemble, 0 (certain) to 1 (all labels alike)."""
    log_p = torch.log_softmax(logits.float(), dim=0)
    entropy = -(log_p.exp() * log_p).sum(0) / float(np.log(len(logits)))
    labels = log_p.argmax(0)
    return {int(label): float(entropy[labels == label].mean()) for label in labels.unique() if label != 0}
