"""Both engines against nnU-Net's own predictor and export, and what happens when OpenVINO cannot be used."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from ctnet_nnunet.architectures.from_plan import network_from_plan
from ctnet_nnunet.benchmark.steps import Workload, architecture_of
from ctnet_nnunet.errors import SetupError
from ctnet_nnunet.inference import engine_openvino
from ctnet_nnunet.inference.confidence import fold_disagreement, label_entropy, voxel_entropy
from ctnet_nnunet.inference.engine import choose_engine
from ctnet_nnunet.inference.ensemble import Ensemble
from ctnet_nnunet.inference.export_labels import labels_in_scan
from ctnet_nnunet.inference.model import Model, load_model
from ctnet_nnunet.precision import bfloat16_supported

CPU = torch.device("cpu")
GRID, SCAN = (20, 30, 26), (24, 36, 30)  # larger than the patch of 16×24×24, so that tiles overlap


@pytest.fixture
def model(model_folder: Path) -> Model:
    return load_model(model_folder)


def properties(spacing: Sequence[float]) -> dict[str, Any]:
    """Of a scan that was cropped on all sides and resampled to ``GRID``."""
    box = [[1, 1 + size] for size in SCAN]
    return {
        "spacing": list(spacing),
        "shape_before_cropping": tuple(size + 3 for size in SCAN),
        "shape_after_cropping_and_before_resampling": SCAN,
        "bbox_used_for_cropping": box,
    }


def image() -> torch.Tensor:
    return torch.randn((1, *GRID), generator=torch.Generator().manual_seed(0))


def scan_properties(model: Model) -> dict[str, Any]:
    factors = [grid / scan for grid, scan in zip(GRID, SCAN, strict=True)]
    return properties([size * f for size, f in zip(model.configuration.spacing, factors, strict=True)])


def stock(model: Model, data: torch.Tensor) -> np.ndarray:
    """Labels by nnU-Net's own code."""
    predictor = nnUNetPredictor(device=CPU, allow_tqdm=False)
    predictor.manual_initialization(
        model.network, model.plans, model.configuration, list(model.weights), model.dataset_json, model.trainer,
        model.mirror_axes,
    )  # fmt: skip
    logits = predictor.predict_logits_from_preprocessed_data(data)
    manager = model.plans.get_label_manager(model.dataset_json)
    return np.asarray(
        convert_predicted_logits_to_segmentation_with_correct_shape(
            logits, model.plans, model.configuration, manager, scan_properties(model), num_threads_torch=1
        )
    )


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_best_is_what_nnunet_predicts(model: Model, engine: str) -> None:
    ensemble = Ensemble(model, CPU, "best", engine=engine)
    assert (ensemble.engine.name, ensemble.engine.precision) == (engine, "float32")
    assert ensemble.cost(image()).passes == 8 * 2 * 2  # two tiles an axis, one mirror axis, two folds
    expected, found = stock(model, image()), ensemble.predict(image(), scan_properties(model)).labels
    assert len(np.unique(expected)) > 1
    assert np.mean(expected != found) < 1e-4


@pytest.mark.parametrize("engine", ["torch", "openvino"])
@pytest.mark.skipif(not bfloat16_supported(CPU), reason="no bf16 in this processor")
def test_balanced_rounds_and_no_more(model: Model, engine: str) -> None:
    logits = {}
    for speed in ("best", "balanced"):
        ensemble = Ensemble(model, CPU, speed, engine=engine)
        with torch.inference_mode():
            logits[speed] = ensemble._logits(image())[0].float()
    assert ensemble.engine.precision == "bf16"
    error = (logits["best"] - logits["balanced"]).abs().mean() / logits["best"].std()
    assert 0 < error < 0.1  # bf16 keeps eight bits; an extreme voxel of random weights may be off by more


@pytest.mark.parametrize("subject", ["PlainConvUNet", "ResEncUNet-M", "CTNet-s"])
@pytest.mark.parametrize("patch", [(32, 32, 32), (64, 64)])
def test_every_network_converts(subject: str, patch: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    workload = Workload(patch, 1, 4)
    network = network_from_plan(architecture_of(subject, workload), 1, 3, False).eval()
    openvino = engine_openvino.import_without_telemetry()
    shape = (1, 1, *patch)
    converted = engine_openvino.convert(network, network.state_dict(), shape)
    compiled = openvino.Core().compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    data = torch.randn(shape)
    with torch.no_grad():
        expected = network(data)
    assert np.allclose(compiled([data.numpy()])[0], expected, atol=1e-3 * float(expected.std()))


def test_folds_keep_their_own_weights(model: Model) -> None:
    ensemble = Ensemble(model, CPU, "best", engine="openvino")
    patch = torch.randn(1, 1, *model.configuration.patch_size)

    def logits(fold: int) -> torch.Tensor:
        ensemble.engine.use_fold(fold)
        return next(ensemble.engine.run([patch]))

    first, second, again = logits(0), logits(1), logits(0)
    assert torch.equal(first, again) and not torch.allclose(first, second)


def test_logits_come_in_the_order_of_the_patches(model: Model) -> None:
    engine = Ensemble(model, CPU, "best", engine="openvino").engine
    patches = [torch.full((1, 1, *model.configuration.patch_size), float(i)) + torch.randn(24) for i in range(7)]
    alone = [next(engine.run([patch])) for patch in patches]
    assert all(torch.equal(a, b) for a, b in zip(alone, engine.run(patches), strict=True))


def test_a_model_that_cannot_be_converted_runs_in_torch_and_says_so(
    model: Model,
) -> None:
    class Foreign(torch.nn.Module):
        """Holds the weights, and traces to an operation that no importer has."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = model.network

        def load_state_dict(self, *arguments: Any, **options: Any) -> Any:
            return self.inner.load_state_dict(*arguments, **options)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.inner(image) + torch.special.bessel_j0(image)

    model.network = Foreign()
    said: list[str] = []
    engine = choose_engine(model, CPU, False, "openvino", said.append)
    assert engine.name == "torch"
    assert len(said) == 1 and "bessel_j0" in said[0] and "\n" not in said[0]


def test_openvino_that_is_not_installed(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert choose_engine(model, CPU, True, "auto", print).name == "torch"
    with pytest.raises(SetupError, match=r"ctnet_nnunet\[cpu\]"):
        choose_engine(model, CPU, True, "openvino", print)


def test_openvino_reports_to_nobody(tmp_path: Path) -> None:
    """Left alone, its import writes a client id into the home folder and opens connections."""
    program = """
import sys
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        print("CONNECTS", event, arguments)
sys.addaudithook(watch)
from ctnet_nnunet.inference.engine_openvino import import_without_telemetry
import_without_telemetry()
import openvino.tools.ovc
print("stub" if openvino.tools.ovc.telemetry_utils.tm.__name__.endswith("telemetry_stub") else "TELEMETRY")
"""
    environment = {"HOME": str(tmp_path), "PYTHONPATH": ":".join(sys.path), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["stub"], done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("regions", [False, True])
def test_export_is_nnunet_s_voxel_for_voxel(model: Model, regions: bool) -> None:
    if regions:
        model.dataset_json.update(labels={"background": 0, "whole": [1, 2], "core": 2}, regions_class_order=[1, 2])
    manager = model.plans.get_label_manager(model.dataset_json)
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn((manager.num_segmentation_heads, *GRID), generator=generator).half()
    logits[0, :10] = logits[1, :10]  # equal ones: the first wins
    expected = convert_predicted_logits_to_segmentation_with_correct_shape(
        logits.clone(), model.plans, model.configuration, manager, scan_properties(model), num_threads_torch=1
    )
    found = labels_in_scan(logits, model, scan_properties(model))
    assert found.dtype == expected.dtype and np.array_equal(found, expected)
    assert len(np.unique(found)) == 3


def test_entropy_and_disagreement_by_hand() -> None:
    logits = torch.zeros(2, 2, 1, 2)
    logits[1, 0, 0, 0] = 100.0
    assert voxel_entropy(logits, False).flatten().tolist() == pytest.approx([0, 1, 1, 1])
    labels = np.array([[[1, 1]], [[0, 0]]])
    assert label_entropy(logits, labels, False) == {1: pytest.approx(0.5)}
    assert voxel_entropy(torch.tensor([[[[0.0]]], [[[50.0]]]]), True).item() == pytest.approx(1)
    other = np.array([[[1, 0]], [[0, 0]]])
    assert fold_disagreement([labels, other], labels).flatten().tolist() == [0, 0.5, 0, 0]
