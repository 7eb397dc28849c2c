"""Imaging planes: where do the study's other planes cut this slice, and where in its stack does it lie?

T. Zhang, D. Wei, M. Zhu, S. Gu, Y. Zheng, "Self-supervised learning for medical image data with anatomy-oriented
imaging planes", Medical Image Analysis 94:103151 (2024), doi 10.1016/j.media.2024.103151.

Two regressions from one slice (the host). Lines: for each guest role a heatmap exp(−d²/2σ²) of the distance d in mm to
the line in which the guest's plane cuts the host; this trains encoder and decoder. Location: the slice's place in its
stack, 0..1, from the encoder's coarsest features. Nothing is drawn here: the geometry is the study's, and the heatmaps
went through the same augmentation as the image.

Where we differ from the published code: heatmaps come from the signed distance and not from a drawn and re-detected
line; σ is in mm; what a study cannot say is masked out and not asserted; the network is the plan's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ctnet_nnunet.architectures.features import decoder_features, encoder_features
from ctnet_nnunet.errors import PlanError
from ctnet_nnunet.pretext.base import PretextContext, PretextTask, Views, whole_count

DEFAULT_GUESTS = ("2CH", "4CH")
HIDDEN_UNITS = 128
FOUND = 0.5
"""Heat above which a pixel belongs to a predicted line."""
_WANTED = ("host", "heat", "heat_valid", "location", "location_valid", "line", "slices")


@dataclass(frozen=True)
class ImagingPlanesOptions:
    """Options of the task. None: what planes.json says.

    Attributes:
        planes_lines, planes_location: Weights of the two losses; 0 leaves one out.
        planes_hosts: Roles whose slices are looked at.
        planes_guests: Roles whose lines are to be found, one heatmap each.
        planes_sigma_mm: σ of the heatmaps.
        planes_guest_slice: Which slice of a guest's stack cuts: ``middle`` or an index.
        planes_location_axis: ``cardiac`` (0 is the base), ``largest`` or ``auto`` (by the host's role).
        planes_dropout: In the location's head.
    """

    planes_lines: float = 1.0
    planes_location: float = 1.0
    planes_hosts: tuple[str, ...] | None = None
    planes_guests: tuple[str, ...] | None = None
    planes_sigma_mm: float | None = None
    planes_guest_slice: Literal["middle"] | int | None = None
    planes_location_axis: Literal["auto", "cardiac", "largest"] | None = None
    planes_dropout: float = 0.5

    def __post_init__(self) -> None:
        weights = (self.planes_lines, self.planes_location)
        if min(weights) < 0 or not sum(weights) > 0:
            raise ValueError(f"planes_lines, planes_location: {weights} must be 0 or more, and one of them more than 0")
        if self.planes_sigma_mm is not None and not 0 < self.planes_sigma_mm < math.inf:
            raise ValueError(f"planes_sigma_mm: {self.planes_sigma_mm} is not positive")
        if self.planes_hosts == () or self.planes_guests == ():
            raise ValueError("planes_hosts, planes_guests: name at least one role, or null for what planes.json says")
        chosen = self.planes_guest_slice
        if chosen not in (None, "middle") and (not isinstance(chosen, int) or isinstance(chosen, bool) or chosen < 0):
            raise ValueError(f"planes_guest_slice: {chosen!r} is neither middle nor an index from 0 on")
        if not 0 <= self.planes_dropout < 1:
            raise ValueError(f"planes_dropout: {self.planes_dropout} is not in 0 <= dropout < 1")


class ImagingPlanes(PretextTask):
    """Mean squared error of heatmaps and of locations, each over what is valid."""

    Options: ClassVar = ImagingPlanesOptions
    needs_tokens: ClassVar = False
    views: ClassVar = frozenset({"host"})

    def __init__(self, network: nn.Module, context: PretextContext, options: ImagingPlanesOptions) -> None:
        super().__init__(network, context, options)
        if len(context.patch_size) != 2:
            raise PlanError(
                "ctnet option pretext: imaging_planes looks at single slices; use a 2d configuration (-c 2d)"
            )
        self.options = options
        self.spacing = (context.spacing[0], context.spacing[1])
        channels: list[int] = network.encoder.output_channels  # type: ignore[union-attr, assignment]
        guests = len(options.planes_guests or DEFAULT_GUESTS)
        self.heatmaps = nn.Conv2d(channels[0], guests, 1) if options.planes_lines else None
        self.location = LocationHead(channels[-1], options.planes_dropout) if options.planes_location else None
        self.trains_decoder = self.heatmaps is not None

    def sample(self, views: Views, generator: torch.Generator) -> dict[str, Tensor]:
        """Nothing: the study's geometry decides."""
        return {}

    def targets(self, views: Views, draw: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The view with what is known of it, as it is."""
        return {name: views[name] for name in _WANTED if name in views}

    def counted(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The valid heatmaps and the valid locations."""
        return torch.stack([batch["heat_valid"].sum(), batch["location_valid"].sum()])

    def forward(self, network: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``loss``, and the metrics of :func:`line_metrics` and :func:`location_metrics` of the losses in use."""
        skips = encoder_features(network, batch["host"])
        total = batch["host"].new_zeros((), dtype=torch.float32)
        outputs: dict[str, Tensor] = {}
        if self.heatmaps is not None:
            heat = self.heatmaps(decoder_features(network, skips)[-1]).float()
            loss = heatmap_loss(heat, batch["heat"].float(), batch["heat_valid"], whole_count(batch, 0))
            total = total + self.options.planes_lines * loss
            outputs |= {"lines": loss.detach(), **line_metrics(heat.detach(), batch, self.spacing)}
        if self.location is not None:
            location = self.location(skips[-1]).float()
            target, valid = batch["location"].float(), batch["location_valid"]
            loss = location_loss(location, target, valid, whole_count(batch, 1))
            total = total + self.options.planes_location * loss
            outputs |= {"location": loss.detach(), **location_metrics(location.detach(), batch)}
        return {"loss": total, **outputs}

    @torch.no_grad()
    def predict(self, network: nn.Module, host: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Host (B, C, H, W) → heatmaps (B, G, H, W) and locations (B,); None for what was not trained."""
        skips = encoder_features(network, host)
        heat = None if self.heatmaps is None else self.heatmaps(decoder_features(network, skips)[-1]).float()
        return heat, None if self.location is None else self.location(skips[-1]).float()


class LocationHead(nn.Module):
    """The coarsest features (B, C, h, w) → a location (B,): global maximum, two linear layers, no sigmoid."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
            nn.Linear(channels, HIDDEN_UNITS),
            nn.Dropout(dropout),
            nn.ReLU(),
            nn.Linear(HIDDEN_UNITS, 1),
        )

    def forward(self, features: Tensor) -> Tensor:
        location: Tensor = self.layers(features)
        return location[:, 0]


def heatmap_loss(predicted: Tensor, target: Tensor, valid: Tensor, count: Tensor | None = None) -> Tensor:
    """Mean squared error of heatmaps (B, G, H, W) over the valid (B, G) ones; 0 with a gradient of 0 if none is.

    ``count`` is what the sum is divided by, in place of the number of valid ones.
    """
    error = (predicted - target).square().mean((2, 3))
    return (error * valid).sum() / (valid.sum().clamp(min=1) if count is None else count)


def location_loss(predicted: Tensor, target: Tensor, valid: Tensor, count: Tensor | None = None) -> Tensor:
    """Mean squared error of locations (B,) over the valid (B,) ones, like :func:`heatmap_loss`."""
    error = (predicted - target).square() * valid
    return error.sum() / (valid.sum().clamp(min=1) if count is None else count)


def line_metrics(heat: Tensor, batch: Mapping[str, Tensor], spacing: tuple[float, float]) -> dict[str, Tensor]:
    """``overlap`` of predicted and true heat (1 is perfect) and, where ``line`` is given, how far the lines are off.

    ``angle_deg`` and ``offset_mm`` are means over the valid lines of which something was found, nan without any;
    ``found`` is their share.
    """
    target, valid = batch["heat"].float(), batch["heat_valid"]
    clipped = heat.clamp(0, 1)
    both = torch.minimum(clipped, target).sum((2, 3))
    either = torch.maximum(clipped, target).sum((2, 3)).clamp(min=1e-6)
    metrics = {"overlap": _mean(both / either, valid)}
    if "line" in batch:
        angle, offset = line_errors(heat, batch["line"].float(), spacing)
        seen = valid & angle.isfinite()
        metrics |= {
            "angle_deg": _mean(angle, seen),
            "offset_mm": _mean(offset, seen),
            "found": _mean(seen.float(), valid),
        }
    return metrics


def line_errors(heat: Tensor, line: Tensor, spacing: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """How far predicted lines lie from the true ones.

    A line is fitted to the pixels of heat above ½, weighted by it: through their centroid along their principal axis,
    in mm.

    Args:
        heat: Predicted (B, G, H, W).
        line: True lines (B, G, 3): mm per row, mm per column, offset in mm, as in planes.geometry.Line.
        spacing: Distance of rows and of columns, mm.

    Returns:
        The angle between the lines in degrees, 0..90, and the centroid's distance to the true line in mm, both (B, G);
        nan where fewer than two pixels are above ½.
    """
    weight = torch.where(heat > FOUND, heat, 0.0).double()
    total = weight.sum((2, 3))
    rows = spacing[0] * torch.arange(heat.shape[2], device=heat.device, dtype=torch.float64)[:, None]
    columns = spacing[1] * torch.arange(heat.shape[3], device=heat.device, dtype=torch.float64)
    row, column = ((weight * axis).sum((2, 3)) / total for axis in (rows, columns))
    away = (rows - row[..., None, None], columns - column[..., None, None])
    rr, cc, rc = ((weight * a * b).sum((2, 3)) / total for a, b in (away[:1] * 2, away[1:] * 2, away))
    # The principal axis of a 2 × 2 covariance, as an angle from the column axis.
    found = 0.5 * torch.atan2(2 * rc, cc - rr)
    scale = torch.tensor([*spacing, 1.0], dtype=torch.float64, device=line.device)
    per_row, per_column, offset = (line.double() / scale).unbind(-1)
    true = torch.atan2(per_column, -per_row)
    difference = (found - true).remainder(math.pi)
    angle = torch.rad2deg(torch.minimum(difference, math.pi - difference))
    distance = (per_row * row + per_column * column + offset).abs()
    enough = (heat > FOUND).sum((2, 3)) > 1
    return torch.where(enough, angle, math.nan), torch.where(enough, distance, math.nan)


def location_metrics(location: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``location_error`` as a share of the stack and, where ``slices`` is given, ``location_slices`` in slices."""
    error = (location - batch["location"].float()).abs()
    metrics = {"location_error": _mean(error, batch["location_valid"])}
    if "slices" in batch:
        metrics["location_slices"] = _mean(error * (batch["slices"] - 1), batch["location_valid"])
    return metrics


def _mean(values: Tensor, valid: Tensor) -> Tensor:
    """The mean of the valid ones; nan if none is."""
    return torch.where(valid, values, 0.0).sum() / valid.sum()
