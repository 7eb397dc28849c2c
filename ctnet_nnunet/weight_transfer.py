"""Carry weights between networks of different plans: what fits is loaded, what can be made to fit is adapted.

Every adaptation keeps a response where it can: kernels gain zeros around them or fold their outer taps inwards, so a
signal that is constant along the changed axis gives the same features; input channels are spread so that the same
image in every channel does. Encoder stages correspond counted from the input, decoder stages counted from the output.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctnet_nnunet.checkpoints import HEADS

Action = Literal["loaded", "adapted", "skipped"]
WRAPPERS = ("module.", "_orig_mod.")
DECODER_STEP = re.compile(r"^(decoder\.(?:stages|transpconvs|seg_layers)\.)(\d+)(\..+)$")


@dataclass(frozen=True)
class TransferRow:
    """What happened to one tensor of the target, and how (``note``)."""

    key: str
    action: Action
    wanted: tuple[int, ...]
    found: tuple[int, ...] | None
    parameters: int
    note: str


@dataclass(frozen=True)
class Transfer:
    """The target's complete state dict and a row for each of its distinct tensors."""

    state: dict[str, Tensor]
    rows: list[TransferRow]

    def tensors(self, action: Action) -> int:
        """Number of the target's tensors, heads left out."""
        return sum(row.action == action and HEADS not in row.key for row in self.rows)

    def share(self, action: Action) -> float:
        """Share of the target's parameters, heads left out."""
        total = sum(row.parameters for row in self.rows if HEADS not in row.key)
        return sum(row.parameters for row in self.rows if row.action == action and HEADS not in row.key) / max(total, 1)


def transfer_weights(
    network: nn.Module,
    source: Mapping[str, Tensor],
    prefixes: Mapping[str, str] | None = None,
    image_channels: int | None = None,
    source_image_channels: int | None = None,
) -> Transfer:
    """Fit ``source`` weights to ``network``; segmentation heads stay the network's own.

    A state dict names the encoder's tensors twice and each convolution's twice more. The file may use any of a
    tensor's names; all of them get what the first one that is found gives.

    Args:
        network: The target, initialised; what nothing can be carried to keeps its values.
        source: A state dict of another PlainConvUNet, ResidualEncoderUNet or CTNet, wrappers' prefixes allowed.
        prefixes: Name of a module in ``source`` → its name in the network, where they differ.
        image_channels: The network's first input channels, which are the image's; the others of a cascade are labels.
            Those that the source lacks change no feature at first. None: all.
        source_image_channels: The same of the source. None: all.
    """
    given = _renamed({_without_wrappers(key): value for key, value in source.items()}, prefixes or {})
    target = network.state_dict()
    shift = _steps(target) - _steps(given)
    state: dict[str, Tensor] = {}
    rows: list[TransferRow] = []
    for keys in _names_of_tensors(target):
        wanted = target[keys[0]]
        key = next((key for key in keys if _source_key(key, shift) in given), keys[0])
        found = given.get(_source_key(key, shift))
        images = source_image_channels, image_channels
        fitted, note = (None, "head, stays new") if HEADS in key else _fit(key, wanted, found, images)
        state |= dict.fromkeys(keys, wanted.clone() if fitted is None else fitted.to(wanted.dtype))
        action: Action = "skipped" if fitted is None else "loaded" if note == "" else "adapted"
        shape = None if found is None else tuple(found.shape)
        rows.append(TransferRow(keys[0], action, tuple(wanted.shape), shape, wanted.numel(), note))
    return Transfer(state, rows)


def _names_of_tensors(state: Mapping[str, Tensor]) -> list[list[str]]:
    """The names of each distinct tensor, in the order of the state dict."""
    names: dict[tuple[int, torch.Size], list[str]] = {}
    for key, value in state.items():
        names.setdefault((value.data_ptr(), value.shape), []).append(key)
    return list(names.values())


def _renamed(state: Mapping[str, Tensor], prefixes: Mapping[str, str]) -> dict[str, Tensor]:
    """A state dict with other names for some modules; a renamed tensor goes before one that had its name already."""
    kept: dict[str, Tensor] = {}
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        old = next((old for old in prefixes if key.startswith(f"{old}.")), None)
        if old is None:
            kept[key] = value
        else:
            renamed[prefixes[old] + key.removeprefix(old)] = value
    return kept | renamed


def _without_wrappers(key: str) -> str:
    while key.startswith(WRAPPERS):
        key = key.split(".", 1)[1]
    return key


def _steps(state: Mapping[str, Tensor]) -> int:
    """Number of decoder steps of a state dict."""
    return len({match[2] for match in map(DECODER_STEP.match, state) if match and "transpconvs" in match[1]})


def _source_key(key: str, shift: int) -> str:
    match = DECODER_STEP.match(key)
    if match is None or shift == 0:
        return key
    return f"{match[1]}{int(match[2]) - shift}{match[3]}"


def _fit(
    key: str, wanted: Tensor, found: Tensor | None, images: tuple[int | None, int | None]
) -> tuple[Tensor | None, str]:
    """The tensor for ``key`` and how it was made ("" if as it was), or None and why not.

    ``images``: where the network reads its input, how many channels of ``found`` and ``wanted`` are the image's.
    """
    if found is None:
        return None, "not in the file"
    had, has = _images_channels(key, found, images[0]), _images_channels(key, wanted, images[1])
    if found.shape == wanted.shape and had == has:
        return found.clone(), ""
    if key.endswith("position_table"):
        table = resized_table(found, wanted.shape)
        return (None, "shape differs") if table is None else (table, "position table resized")
    if wanted.ndim < 4 or found.ndim < 4 or found.ndim > wanted.ndim:
        return None, "shape differs"
    notes = []
    if found.ndim == 4 and wanted.ndim == 5:
        found = found[:, :, None]
        notes.append("2d to 3d")
    if found.shape[2:] != wanted.shape[2:]:
        refit = upsampling_kernel if "transpconvs" in key else fitted_kernel
        for axis in range(2, wanted.ndim):
            found = refit(found, axis, wanted.shape[axis])
        notes.append("kernel size")
    if had and len(found) == len(wanted) and (found.shape[1], had) != (wanted.shape[1], has):
        found = spread_channels(found, wanted.shape[1], had, has)
        notes.append("input channels")
    return (found, ", ".join(notes)) if found.shape == wanted.shape else (None, "shape differs")


def _images_channels(key: str, weight: Tensor, given: int | None) -> int:
    """How many of a kernel's input channels are the image's (None: all); 0 behind the first layer."""
    first = key.removeprefix("decoder.").startswith(("encoder.stem.convs.0.", "encoder.stages.0.0.convs.0."))
    if not first or weight.ndim < 2:
        return 0
    return weight.shape[1] if given is None else min(given, weight.shape[1])


def spread_channels(weight: Tensor, channels: int, images: int | None = None, wanted: int | None = None) -> Tensor:
    """Weight (O, n, *k) → (O, channels, *k): the same image in every channel gives the features that it gave before.

    Args:
        weight: Of a convolution that reads the image.
        channels: How many the result reads.
        images: The first channels of ``weight`` that are the image's, None: all; what follows reads labels.
        wanted: The same of the result. Its channels for labels are those of ``weight`` if these are as many, else zero.
    """
    images = weight.shape[1] if images is None else images
    wanted = channels if wanted is None else wanted
    of_image, of_labels = weight[:, :images], weight[:, images:]
    spread = weight.new_zeros(len(weight), channels, *weight.shape[2:])
    spread[:, :wanted] = of_image if images == wanted else of_image.sum(1, keepdim=True) / wanted
    if of_labels.shape[1] == channels - wanted:
        spread[:, wanted:] = of_labels
    return spread


def fitted_kernel(weight: Tensor, axis: int, size: int) -> Tensor:
    """Change a convolution kernel's size along an axis, centred.

    A smaller kernel gets zeros around it, which changes nothing; the outer taps of a larger one are added to the
    nearest that stay, which changes nothing for a signal that is constant along the axis.
    """
    have = weight.shape[axis]
    if have <= size:
        before = (size - have) // 2
        return _padded(weight, axis, before, size - have - before)
    first = (have - size) // 2
    kept = weight.narrow(axis, first, size).clone()
    kept.narrow(axis, 0, 1).add_(weight.narrow(axis, 0, first).sum(axis, keepdim=True))
    rest = have - first - size
    kept.narrow(axis, size - 1, 1).add_(weight.narrow(axis, have - rest, rest).sum(axis, keepdim=True))
    return kept


def upsampling_kernel(weight: Tensor, axis: int, size: int) -> Tensor:
    """Change a transposed convolution's kernel and stride along an axis: a single tap is repeated, several averaged."""
    if weight.shape[axis] == size:
        return weight
    mean = weight.mean(axis, keepdim=True)
    return mean.repeat_interleave(size, dim=axis)


def resized_table(table: Tensor, shape: torch.Size) -> Tensor | None:
    """A position table (1, E, *grid) on another grid; a 2d one is repeated along the new first axis."""
    if table.shape[1] != shape[1] or table.ndim > len(shape):
        return None
    if table.ndim < len(shape):
        table = table[:, :, None].expand(-1, -1, shape[2], -1, -1)
    mode = "trilinear" if len(shape) == 5 else "bilinear"
    return F.interpolate(table, size=tuple(shape[2:]), mode=mode, align_corners=False)


def _padded(weight: Tensor, axis: int, before: int, behind: int) -> Tensor:
    pads = [0, 0] * (weight.ndim - axis - 1) + [before, behind]
    return F.pad(weight, pads)
