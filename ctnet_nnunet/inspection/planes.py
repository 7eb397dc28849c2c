"""A study's host slices with the lines that its other planes truly cut, and those that a checkpoint predicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from torch import nn

from ctnet_nnunet.architectures.ctnet import cumulative_strides
from ctnet_nnunet.architectures.from_plan import network_from_plan
from ctnet_nnunet.checkpoints import read_checkpoint
from ctnet_nnunet.errors import CheckpointError, DataError, PlanError
from ctnet_nnunet.planes.geometry import Line, intersection, slice_locations
from ctnet_nnunet.planes.preprocessed import first_slice, preprocessed_planes
from ctnet_nnunet.planes.sidecar import FILE_NAME, Sidecar, read_sidecar
from ctnet_nnunet.planning.options import read_options
from ctnet_nnunet.pretext.base import PretextContext
from ctnet_nnunet.pretext.imaging_planes import ImagingPlanes, ImagingPlanesOptions, line_errors
from ctnet_nnunet.unlabeled.target import Target, configuration_block, locate

OWN_KEY, TASK = "ctnet", "imaging_planes"


@dataclass(frozen=True)
class ShownSlice:
    """One host slice.

    Attributes:
        case, index: The case, and the slice after preprocessing.
        image: (H, W), the first channel.
        spacing: Of rows and columns, mm.
        lines: True line of each guest, None where there is none.
        location: True location, or None.
        heat: Predicted heatmaps (G, H, W), or None.
        predicted_location: Or None.
        errors: (angle in degrees, offset in mm) of each predicted line; nan where nothing was found.
    """

    case: str
    index: int
    image: np.ndarray
    spacing: tuple[float, float]
    lines: tuple[Line | None, ...]
    location: float | None
    heat: np.ndarray | None
    predicted_location: float | None
    errors: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class ShownStudy:
    """A study's host slices and its guests' roles, in the order of lines and heatmaps."""

    name: str
    guests: tuple[str, ...]
    slices: tuple[ShownSlice, ...]


@dataclass(frozen=True)
class Model:
    """A pretrained network with its heads."""

    network: nn.Module
    task: ImagingPlanes
    options: Mapping[str, Any]
    multiple: tuple[int, int]
    patch_size: tuple[int, int]

    def predict(self, image: np.ndarray) -> tuple[np.ndarray | None, float | None]:
        """A slice (C, H, W) → heatmaps (G, H, W) and location; the slice is padded to the patch and the strides."""
        size = [
            -(-max(length, patch) // step) * step
            for length, patch, step in zip(image.shape[1:], self.patch_size, self.multiple, strict=True)
        ]
        top, left = ((wanted - length) // 2 for wanted, length in zip(size, image.shape[1:], strict=True))
        rows, columns = slice(top, top + image.shape[1]), slice(left, left + image.shape[2])
        padded = torch.zeros((1, image.shape[0], *size))
        padded[0, :, rows, columns] = torch.from_numpy(image)
        heat, location = self.task.predict(self.network, padded)
        cut = None if heat is None else heat[0, :, rows, columns].numpy()
        return cut, None if location is None else float(location[0])


def show_study(dataset: str, configuration: str, plans: str, study: str | None, checkpoint: Path | None) -> ShownStudy:
    """The slices of a study that was preprocessed, with predictions where a checkpoint is given.

    Raises:
        DataError: No planes.json, no such study, no preprocessed host in it.
        PlanError, CheckpointError: A 3d configuration; a checkpoint of another plan or trainer.
    """
    target = locate(dataset, configuration, plans)
    block = configuration_block(target.plans, configuration, plans)
    if len(block["patch_size"]) != 2:
        raise PlanError(f"configuration {configuration}: imaging planes are single slices; name a 2d one with -c")
    sidecar = read_sidecar(target.folder / FILE_NAME)
    name = next(iter(sidecar.studies), "") if study is None else study
    if name not in sidecar.studies:
        known = ", ".join(list(sidecar.studies)[:8])
        raise DataError(f"{target.folder / FILE_NAME}: has no study {name!r}; there are {known}")
    model = None if checkpoint is None else load_model(checkpoint, target, block)
    given = read_options(block.get("ctnet"), f"plans {plans}").model_dump()
    options = sidecar.settings({**given, **({} if model is None else model.options)})
    guests, hosts = tuple(options["guests"]), tuple(options["hosts"])
    slices = _slices(target, block, sidecar, name, hosts, guests, options, model)
    if not slices:
        raise DataError(f"study {name}: none of its {', '.join(hosts)} cases is preprocessed; see planes.json")
    return ShownStudy(name, guests, tuple(slices))


def load_model(checkpoint: Path, target: Target, block: Mapping[str, Any]) -> Model:
    """The network and heads of a checkpoint of nnUNetTrainerImagingPlanes.

    Raises:
        CheckpointError: Of another trainer or another plan.
    """
    content = read_checkpoint(checkpoint)
    own = content.get(OWN_KEY, {})
    if "planes" not in own:
        raise CheckpointError(f"{checkpoint}: was not written by nnUNetTrainerImagingPlanes; give one of its files")
    options = read_options(block.get("ctnet"), f"plans {target.plans['plans_name']}").model_dump()
    options |= {key: tuple(value) if isinstance(value, list) else value for key, value in own["planes"].items()}
    known = {field.name for field in fields(ImagingPlanesOptions)}
    network = network_from_plan(block["architecture"], target.channels, len(target.dataset_json["labels"]), False)
    patch: tuple[int, int] = tuple(block["patch_size"])
    context = PretextContext(patch, patch, tuple(block["spacing"]), None, target.channels)
    chosen = ImagingPlanesOptions(**{key: value for key, value in options.items() if key in known})
    task = ImagingPlanes(network, context, chosen)
    heads = {key.removeprefix(f"{TASK}."): value for key, value in own["pretext_state"].items()}
    try:
        network.load_state_dict(content["network_weights"])
        task.load_state_dict(heads)
    except (RuntimeError, KeyError):
        raise CheckpointError(
            f"{checkpoint}: does not fit the plans {target.plans['plans_name']}; name those it was trained with by -p"
        ) from None
    down, along = cumulative_strides(block["architecture"]["arch_kwargs"]["strides"])[-1]
    return Model(network.eval(), task.eval(), options, (down, along), patch)


def _slices(
    target: Target,
    block: Mapping[str, Any],
    sidecar: Sidecar,
    name: str,
    hosts: Sequence[str],
    guests: Sequence[str],
    options: Mapping[str, Any],
    model: Model | None,
) -> list[ShownSlice]:
    study = sidecar.studies[name]
    labelled = target.folder.parent / str(block["data_identifier"])
    found = []
    for role in (role for role in hosts if role in study.stacks):
        # Cine frames share their geometry: the first one shows it.
        for case in study.stacks[role].cases[:1]:
            folder = next((f for f in (target.folder, labelled) if (f / f"{case}.b2nd").is_file()), None)
            if folder is not None:
                data, _, _, properties = nnUNetDatasetBlosc2(str(folder), [case]).load_case(case)
                planes = preprocessed_planes(properties, data.shape[1:], target.plans["transpose_forward"])
                cutting = [None if guest == role else study.guest(guest, options["guest_slice"]) for guest in guests]
                locations = slice_locations(study.stacks[role].stack, role, options["location_axis"])
                for index, plane in enumerate(planes):
                    image = np.asarray(data[:, index], np.float32)
                    lines = tuple(None if guest is None else intersection(plane, guest) for guest in cutting)
                    location = None if locations is None else float(locations[first_slice(properties) + index])
                    heat, predicted = (None, None) if model is None else model.predict(image)
                    errors = _errors(heat, lines)
                    found.append(
                        ShownSlice(case, index, image[0], plane.spacing, lines, location, heat, predicted, errors)
                    )
    return found


def _errors(heat: np.ndarray | None, lines: Sequence[Line | None]) -> tuple[tuple[float, float], ...]:
    if heat is None:
        return tuple((np.nan, np.nan) for _ in lines)
    true = [(0.0, 0.0, 0.0) if line is None else (line.per_row, line.per_column, line.offset) for line in lines]
    angle, offset = line_errors(torch.from_numpy(heat)[None], torch.tensor(true)[None])
    return tuple(
        (np.nan, np.nan) if line is None else (float(a), float(o))
        for line, a, o in zip(lines, angle[0], offset[0], strict=True)
    )
