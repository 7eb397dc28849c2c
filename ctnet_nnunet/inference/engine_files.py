"""The folds' networks as OpenVINO's own files in a bundle, so that predicting needs no conversion."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from ctnet_nnunet.errors import CheckpointError
from ctnet_nnunet.inference.bundle import read_engine_files
from ctnet_nnunet.inference.checked_json import checked, parse_json
from ctnet_nnunet.inference.engine_openvino import CannotConvertError, convert, import_without_telemetry
from ctnet_nnunet.inference.model import Model

ABOUT = "engine.json"
_SAME_LOGITS = 1e-3
"""Share of the largest logit by which the two engines may differ in float32; they sum in another order."""


class About(BaseModel):
    """``engine.json``: what the files were made with and for."""

    model_config = ConfigDict(extra="forbid")

    openvino: Annotated[str, Field(max_length=256)]
    input_shape: Annotated[list[int], Field(min_length=4, max_length=5)]


def engine_files(model: Model) -> dict[str, bytes]:
    """Convert every fold; returns the files by name. Each is run once beside PyTorch.

    Raises:
        CheckpointError: If OpenVINO cannot convert the network, or computes something else with it.
        SetupError: If OpenVINO is broken.
    """
    openvino = import_without_telemetry()
    shape = _input_shape(model)
    about = About(openvino=openvino.__version__, input_shape=list(shape))
    files = {ABOUT: (json.dumps(about.model_dump(), indent=1) + "\n").encode()}
    for fold, (name, weights) in enumerate(zip(model.folds, model.weights, strict=True)):
        try:
            converted = convert(model.network, weights, shape)
        except CannotConvertError as error:
            raise CheckpointError(
                f"{model.source}: OpenVINO cannot convert it ({error}); export without --openvino"
            ) from None
        _check_same(model, fold, converted)
        _name_by_order(converted)
        with tempfile.TemporaryDirectory(prefix="ctnet-export-") as temporary:
            path = Path(temporary, f"fold_{name}.xml")
            openvino.save_model(converted, path, compress_to_fp16=False)
            files |= {file.name: file.read_bytes() for file in (path, path.with_suffix(".bin"))}
    return files


def stored_network(model: Model, fold: int, say: Callable[[str], None]) -> Any | None:
    """The network of ``model.folds[fold]`` out of its bundle; None where it has none for this OpenVINO and patch.

    Raises:
        CheckpointError: If the bundle's files are damaged or no network.
    """
    name = f"fold_{model.folds[fold]}"
    files = read_engine_files(model.source, (ABOUT, f"{name}.xml", f"{name}.bin")) if model.source.is_file() else {}
    if not files:
        return None
    about = checked(About, parse_json(files[ABOUT], f"{model.source}: {ABOUT}"), f"{model.source}: {ABOUT}")
    openvino = import_without_telemetry()
    if about.openvino != openvino.__version__ or tuple(about.input_shape) != _input_shape(model):
        if fold == 0:
            say(
                f"WARNING: {model.source}: its OpenVINO files are for version {about.openvino} and input "
                f"{about.input_shape}, here are {openvino.__version__} and {list(_input_shape(model))}; converted anew"
            )
        return None
    try:
        network = openvino.Core().read_model(files[f"{name}.xml"], files[f"{name}.bin"])
        found = [list(end.get_partial_shape().to_shape()) for end in (*network.inputs, *network.outputs)]
    except (RuntimeError, ValueError, TypeError) as error:
        raise CheckpointError(f"{model.source}: openvino/{name}.xml is no network; export the model again") from error
    heads = model.plans.get_label_manager(model.dataset_json).num_segmentation_heads
    shape = list(_input_shape(model))
    if found != [shape, [1, heads, *shape[2:]]]:
        raise CheckpointError(f"{model.source}: openvino/{name}.xml is another network; export the model again")
    return network


def _input_shape(model: Model) -> tuple[int, ...]:
    return (1, model.channels, *model.configuration.patch_size)


def _name_by_order(converted: Any) -> None:
    """OpenVINO numbers its nodes through the life of a process; the same model is to give the same bytes."""
    converted.set_friendly_name("network")
    for number, node in enumerate(converted.get_ordered_ops()):
        node.set_friendly_name(f"{node.get_type_name()}_{number}")


def _check_same(model: Model, fold: int, converted: Any) -> None:
    openvino = import_without_telemetry()
    image = torch.randn(_input_shape(model), generator=torch.Generator().manual_seed(0))
    compiled = openvino.Core().compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    theirs = torch.from_numpy(compiled(image.numpy())[0])
    model.network.load_state_dict(model.weights[fold])
    with torch.inference_mode():
        ours = model.network.eval()(image)
    if not torch.allclose(ours, theirs, atol=_SAME_LOGITS * float(ours.abs().max()), rtol=0):
        raise CheckpointError(
            f"{model.source}: fold {model.folds[fold]} gives other logits in OpenVINO; export without --openvino"
        )
