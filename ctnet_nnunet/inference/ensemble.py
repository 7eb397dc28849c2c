"""The folds of a model over one scan: nnU-Net's sliding window, fold by fold, so that folds can be compared."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from numpy.typing import NDArray
from torch import Tensor

from ctnet_nnunet.inference.box import Slices, cut_labels
from ctnet_nnunet.inference.confidence import fold_disagreement, label_entropy, voxel_entropy
from ctnet_nnunet.inference.cost import Cost, Stopwatch, peak_bytes
from ctnet_nnunet.inference.engine import Engine, choose_engine
from ctnet_nnunet.inference.export_labels import Place, labels_in_plan, labels_in_scan, map_in_scan, plan_spacing
from ctnet_nnunet.inference.model import Model
from ctnet_nnunet.inference.sliding_window import Window, slide
from ctnet_nnunet.inference.speed import Speed, speed_of


@dataclass(frozen=True)
class Prediction:
    """One scan's labels and what the folds thought.

    Attributes:
        labels: In the scan's own grid, as nnU-Net's reader orders axes.
        properties: What the reader kept of the scan; needed to write in its grid.
        fold_labels: Fold → labels in the plan's grid (cropped and resampled); voxels of ``voxel_ml``.
        voxel_ml: Size of a voxel of the plan's grid.
        entropy: Mean entropy of the ensemble over the voxels of each label, in units of its maximum.
        maps: Name → map in the scan's grid, where asked for: ``entropy`` (0 to 1) and ``disagreement`` (share of the
            folds that give another label than the ensemble).
        cut_off: Labels that touch the border of the box that alone was predicted, where the scan goes on.
    """

    labels: NDArray[Any]
    properties: dict[str, Any]
    fold_labels: list[NDArray[Any]]
    voxel_ml: float
    entropy: dict[int, float]
    maps: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    cut_off: frozenset[int] = frozenset()


class Ensemble:
    """Predicts scans with all folds of a model; ``passes`` counts the forward passes that were made.

    Args:
        model: From :func:`ctnet_nnunet.inference.model.load_model`.
        device: ``cpu``, ``cuda`` or ``mps``.
        speed: One of :data:`ctnet_nnunet.inference.speed.SPEEDS` or its name.
        passed: Called behind each forward pass.
        engine: ``auto``, ``torch`` or ``openvino``.
        say: Takes a line that the user should read.

    Raises:
        SetupError: The engine cannot be had here.
    """

    def __init__(
        self,
        model: Model,
        device: torch.device,
        speed: str | Speed = "balanced",
        passed: Callable[[], None] = lambda: None,
        engine: str = "auto",
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.model, self._tell = model, passed
        self.passes = 0
        self.speed = speed_of(speed) if isinstance(speed, str) else speed
        self.folds = range(len(model.weights))[: self.speed.folds]
        self.engine: Engine = choose_engine(model, device, self.speed.low_precision, engine, say)
        patch = tuple(int(size) for size in model.configuration.patch_size)
        heads = model.plans.get_label_manager(model.dataset_json).num_segmentation_heads
        axes = tuple(model.mirror_axes or ()) if self.speed.mirrors else ()
        self.window = Window(patch, self.speed.step, axes, heads)
        self._coarse = Window(patch, 1.0, (), heads)
        self._stopwatch = Stopwatch(self.engine, (1, model.channels, *patch))

    def preprocess(self, files: Sequence[Path], cut: Slices | None = None) -> tuple[Tensor, dict[str, Any]]:
        """Crop, resample and normalise as in training: image (C, *grid), and what leads back to the scan's grid.

        With ``cut``, a box in the axes of the plan's reader, as if the scan were no larger.
        """
        plans, configuration = self.model.plans, self.model.configuration
        with contextlib.redirect_stdout(io.StringIO()):
            preprocessor = configuration.preprocessor_class(verbose=False)
            scan, read = plans.image_reader_writer_class().read_images([str(file) for file in files])
            scan = scan if cut is None else scan[(slice(None), *cut)]
            data, _, properties = preprocessor.run_case_npy(
                scan, None, read, plans, configuration, self.model.dataset_json
            )
        return torch.from_numpy(np.ascontiguousarray(data, dtype=np.float32)), properties

    def cost(
        self,
        image: Tensor,
        properties: dict[str, Any] | None = None,
        box: Sequence[int] | None = None,
        looks: int = 1,
    ) -> Cost:
        """Of a preprocessed image (C, *grid); with its properties also time (some passes are run) and memory.

        With a ``box`` of so many voxels, of finding it and predicting it alone; the second of two ``looks`` is at it.
        """
        grid = self._padded(image.shape[1:])
        cost = Cost(self.window.count(self._padded(box or grid)), len(self.window.mirrors), len(self.folds))
        if box is not None:
            search = self._coarse.count(grid) + (looks - 1) * self._coarse.count(self._padded(box))
            cost = replace(cost, search=search, whole=self.cost(image).passes)
        if properties is None:
            return cost
        seconds = self._stopwatch.seconds_per_pass() * cost.passes
        scan = properties["shape_after_cropping_and_before_resampling"]
        memory = peak_bytes(self.window.heads, cost.folds, grid, scan)
        return replace(cost, seconds=seconds, peak_bytes=memory)

    @torch.inference_mode()
    def coarse(self, image: Tensor) -> NDArray[Any]:
        """Labels (*grid) of a quick look at a preprocessed image: the first fold, tiles side by side, no mirrors."""
        padded, unpad = self._pad(image)
        self.engine.use_fold(self.folds[0])
        starts = self._coarse.starts(padded.shape[1:])
        logits = slide(padded, self.engine, self._coarse, starts, self._passed).to("cpu")
        return labels_in_plan(logits[(slice(None), *unpad[1:])], self.model)

    @torch.inference_mode()
    def predict(
        self, image: Tensor, properties: dict[str, Any], maps: bool = False, part: Slices | None = None
    ) -> Prediction:
        """Labels of a preprocessed image, in the scan's own grid; with ``maps`` also the voxels' confidence.

        With ``part``, a box of the image, only there; outside of it is background.
        """
        place = None if part is None else Place(part, tuple(image.shape[1:]))
        image = image if part is None else image[(slice(None), *part)].contiguous()
        begun, passes = time.monotonic(), self.cost(image).passes
        logits, fold_labels = self._logits(image)
        self._stopwatch.learn(time.monotonic() - begun, passes)
        regions = self.model.plans.get_label_manager(self.model.dataset_json).has_regions
        found: dict[str, NDArray[np.float32]] = {}
        if maps:
            disagreement = fold_disagreement(fold_labels, labels_in_plan(logits, self.model))
            for name, values in (("entropy", voxel_entropy(logits, regions)), ("disagreement", disagreement)):
                found[name] = map_in_scan(values, self.model, properties, place)
        in_plan = labels_in_plan(logits, self.model)
        entropy = label_entropy(logits, in_plan, regions)
        cut_off = frozenset() if place is None else cut_labels(in_plan, place.part, place.grid)
        voxel_ml = float(np.prod(plan_spacing(self.model, properties))) / 1000.0
        labels = labels_in_scan(logits, self.model, properties, place)
        return Prediction(labels, properties, fold_labels, voxel_ml, entropy, found, cut_off)

    def _logits(self, image: Tensor) -> tuple[Tensor, list[NDArray[Any]]]:
        """Mean logits (heads, *grid) of the folds in half precision, and each fold's labels."""
        padded, unpad = self._pad(image)
        total: Tensor | None = None
        fold_labels = []
        for fold in self.folds:
            self.engine.use_fold(fold)
            starts = self.window.starts(padded.shape[1:])
            logits = slide(padded, self.engine, self.window, starts, self._passed).to("cpu")
            logits = logits[(slice(None), *unpad[1:])]
            fold_labels.append(labels_in_plan(logits, self.model))
            total = logits if total is None else total.add_(logits)
        assert total is not None
        if len(self.folds) > 1:
            total /= len(self.folds)
        return total, fold_labels

    def _passed(self) -> None:
        self.passes += 1
        self._tell()

    def _padded(self, grid: Sequence[int]) -> tuple[int, ...]:
        """The size that :meth:`_pad` makes of a grid."""
        patch = self.window.patch_in(len(grid))
        return tuple(max(int(length), least) for length, least in zip(grid, patch, strict=True))

    def _pad(self, image: Tensor) -> tuple[Tensor, Any]:
        return pad_nd_image(image, self.window.patch, "constant", {"value": 0}, True, None)
