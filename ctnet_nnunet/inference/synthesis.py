"""The generators of nnUNetTrainerCMFT over whole scans, in the normalised intensities that networks see."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import insert_crop_into_image
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.inference.sliding_window_prediction import compute_gaussian, compute_steps_for_sliding_window
from numpy.typing import NDArray
from torch import Tensor

from ctnet_nnunet.architectures.cross_modality import CMFFNet, Pair
from ctnet_nnunet.checkpoints import read_checkpoint
from ctnet_nnunet.cross_modality.cmft import Translators
from ctnet_nnunet.errors import CheckpointError, DataError, SetupError
from ctnet_nnunet.inference.model import Model, load_model
from ctnet_nnunet.inference.model_folder import CHECKPOINT
from ctnet_nnunet.planning.options import read_options

STAGE_ONE = "nnUNetTrainerCMFT"
STEP = 0.5
"""Of a tile, between neighbouring ones, as nnU-Net predicts."""
WRITABLE_READERS = ("SimpleITKIO", "NibabelIO")
"""Readers whose axes are those of the file; the others turn images, and what they read could not be written back."""


@dataclass
class Synthesiser:
    """Both generators of one fold.

    Attributes:
        model: Its plan and its network, whose branches are the generators' bodies.
        translators: The generators.
        patch: Tiles in voxels, those of the training.
        device: To generate on.
    """

    model: Model
    translators: Translators
    patch: tuple[int, ...]
    device: torch.device

    @property
    def pairs(self) -> tuple[tuple[int, ...], ...]:
        """The channels of pair a and of pair b."""
        network = self.model.network
        assert isinstance(network, CMFFNet)
        return network.pairs

    def check_fits(self, model: Model) -> None:
        """Raise CheckpointError unless a fusion model has the same pairs, spacing and normalisation."""
        mine, theirs = (_what_must_agree(one) for one in (self.model, model))
        for what, own in mine.items():
            if own != theirs[what]:
                raise CheckpointError(
                    f"{self.model.source}: its {what} are {own}, those of {model.source} are {theirs[what]}; give the "
                    "first stage of the same data set, plans and pairs"
                )

    @torch.inference_mode()
    def completed(self, image: Tensor, absent: Pair) -> Tensor:
        """A preprocessed image (C, *grid) with the channels of one pair replaced by their synthesis.

        What is exactly 0 in all of the other pair lies outside the body and stays 0 where the plan normalises within
        the body.
        """
        a, b = self.pairs
        source, target = (b, a) if absent == "a" else (a, b)
        generate = self.translators.b_to_a if absent == "a" else self.translators.a_to_b
        given = image[list(source)].float()
        made = self._sliding(given, len(target), generate)
        within = self.model.configuration.use_mask_for_norm
        outside = (given == 0).all(0)
        complete = image.clone()
        for number, channel in enumerate(target):
            complete[channel] = torch.where(outside, 0.0, made[number]) if within[channel] else made[number]
        return complete

    def _sliding(self, image: Tensor, channels: int, generate: Any) -> Tensor:
        """Tiles with half an overlap, weighted by a Gaussian; slice by slice where the plan is 2d."""
        if len(self.patch) == image.ndim - 2:
            return torch.stack([self._sliding(image[:, z], channels, generate) for z in range(image.shape[1])], 1)
        padded, back = pad_nd_image(image, self.patch, "constant", {"value": 0}, True, None)
        steps = compute_steps_for_sliding_window(padded.shape[1:], self.patch, STEP)
        weight = compute_gaussian(self.patch, dtype=torch.float32, device=torch.device("cpu"))
        total, weights = torch.zeros(channels, *padded.shape[1:]), torch.zeros(padded.shape[1:])
        for corner in itertools.product(*steps):
            tile = tuple(slice(first, first + size) for first, size in zip(corner, self.patch, strict=True))
            made = generate(padded[(slice(None), *tile)][None].to(self.device))[0].float().cpu()
            total[(slice(None), *tile)] += made * weight
            weights[tile] += weight
        # The slicer's first entry counts the channels that were given, not those that were made.
        return (total / weights)[(slice(None), *back[-len(self.patch) :])]


def load_synthesiser(folder: Path, device: torch.device) -> Synthesiser:
    """Read the generators of a model folder of nnUNetTrainerCMFT, or of one of its ``fold_X``.

    Raises:
        CheckpointError: No such model, not of that trainer, or several folds of which none was chosen.
    """
    if folder.is_file():
        raise CheckpointError(f"{folder}: bundles hold no generators; give the folder of the {STAGE_ONE} model")
    chosen = [folder.name.removeprefix("fold_")] if folder.name.startswith("fold_") else None
    model = load_model(folder.parent if chosen else folder, chosen)
    if model.trainer != STAGE_ONE:
        raise CheckpointError(f"{folder}: was trained by {model.trainer}; generators are {STAGE_ONE}'s")
    if len(model.folds) > 1:
        raise CheckpointError(f"{folder}: has the folds {', '.join(model.folds)}; give one, {folder / 'fold_0'}")
    assert isinstance(model.network, CMFFNet)
    options = read_options(model.configuration.configuration.get("ctnet"), "plans.json").cross_modality
    patch = tuple(options.cmft_patch or model.configuration.patch_size)
    translators = Translators(model.network, len(patch))
    checkpoint = read_checkpoint(model.source / f"fold_{model.folds[0]}" / CHECKPOINT)
    try:
        translators.heads.load_state_dict(checkpoint["ctnet"]["generator_heads"])
    except (KeyError, RuntimeError, TypeError):
        raise CheckpointError(f"{folder}: holds no output layers of generators that fit; train it again") from None
    return Synthesiser(model, translators.to(device).eval(), patch, device)


def _what_must_agree(model: Model) -> dict[str, Any]:
    network, names = model.network, model.dataset_json["channel_names"]
    pairs = network.pairs if isinstance(network, CMFFNet) else ()
    return {
        "pairs": [[str(names[str(channel)]) for channel in pair] for pair in pairs],
        "spacings": [float(size) for size in model.configuration.spacing],
        "normalisations": list(model.configuration.normalization_schemes),
    }


def in_the_scans_grid(model: Model, image: Tensor, properties: dict[str, Any]) -> NDArray[Any]:
    """Preprocessed channels (N, *grid) → (N, Z, Y, X) of the scan's own grid, 0 where preprocessing had cropped."""
    configuration, forward = model.configuration, model.plans.transpose_forward
    shape = properties["shape_after_cropping_and_before_resampling"]
    spacing = [properties["spacing"][axis] for axis in forward]
    current = [float(size) for size in configuration.spacing]
    current = current if len(current) == len(shape) else [spacing[0], *current]
    resampled = np.asarray(configuration.resampling_fn_data(image.numpy(), shape, current, spacing))
    whole = np.zeros((len(resampled), *properties["shape_before_cropping"]), np.float32)
    for channel, values in zip(whole, resampled, strict=True):
        insert_crop_into_image(channel, values, properties["bbox_used_for_cropping"])
    return whole.transpose([0, *(axis + 1 for axis in model.plans.transpose_backward)])


def write_channels(arrays: NDArray[Any], channels: Sequence[int], like: Path, stem: Path, ending: str) -> list[Path]:
    """Write channels (N, Z, Y, X) beside each other as ``STEM_000c``, in the grid of the file ``like``.

    Raises:
        SetupError: A file cannot be written; it is not left half-written.
    """
    reference = sitk.ReadImage(str(like))
    written = []
    for array, channel in zip(arrays, channels, strict=True):
        image = sitk.GetImageFromArray(array[0] if reference.GetDimension() == 2 else array)
        image.CopyInformation(reference)
        target = stem.with_name(f"{stem.name}_{channel:04d}{ending}")
        temporary = target.with_name(f".part_{os.getpid()}_{target.name}")
        try:
            sitk.WriteImage(image, str(temporary), True)
            os.replace(temporary, target)
        except (OSError, RuntimeError) as error:
            temporary.unlink(missing_ok=True)
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise SetupError(f"{target}: could not be written ({reason}); free disk space or fix the rights") from None
        written.append(target)
    return written


def check_writable(model: Model) -> None:
    """Raise DataError where the plan's reader turns images, so that a synthesis could not be put back in place."""
    reader = model.plans.plans["image_reader_writer"]
    if reader not in WRITABLE_READERS:
        raise DataError(f"{model.source}: its images are read by {reader}; synthesis wants {WRITABLE_READERS[0]}")
