"""A scan that is larger than its structures: found by a coarse pass, then predicted in a box round them.

The coarse pass is one fold without mirrors and without overlap. A model that was trained on crops gets a crop of the
scan, normalised by itself as its training cases were and centred by a second coarse pass over it; one that was trained
on whole scans gets the scan normalised as a whole and predicts the tiles of the box. Outside of the box everything is
background. Where the structures are not found, or reach far out of the box, the whole scan is predicted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ctnet_nnunet.errors import SetupError
from ctnet_nnunet.evaluation.metrics import Structure
from ctnet_nnunet.evaluation.reference import FAR, Reference
from ctnet_nnunet.inference.box import (
    MARGIN_MM,
    MOST_OUTSIDE,
    Known,
    Slices,
    around,
    cut_labels,
    find_middle,
    is_found,
    known_structures,
    left_out,
    share_outside,
)
from ctnet_nnunet.inference.cost import Cost
from ctnet_nnunet.inference.ensemble import Ensemble, Prediction
from ctnet_nnunet.inference.grids import Grids, centre_mm, grids_of, voxels
from ctnet_nnunet.inference.prepare import TURNS_ITSELF, Prepared
from ctnet_nnunet.orientation import FLAT

Bridge = Callable[[Tensor], AbstractContextManager[Tensor]]
"""Makes a preprocessed image complete, for as long as it is used."""


@dataclass(frozen=True)
class Outcome:
    """What was done about the box, for the record, the console and the page.

    Attributes:
        reason: Why the whole scan was predicted; empty where a box was.
        mm: The box, right-left, front-back, up-down.
        centre: In mm (RAS), where the scan's header says it.
        voxels: First and behind the last along the axes (x, y, z) of the scan as the model reads it.
        passes, whole: Forward passes, also those of the coarse pass; what the whole scan takes.
        warnings: What a reader of the result must know.
    """

    reason: str
    mm: tuple[float, ...] = ()
    centre: tuple[float, ...] = ()
    voxels: tuple[tuple[int, int], ...] = ()
    passes: int = 0
    whole: int = 0
    warnings: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """Behind ``the scan was``."""
        if self.reason:
            return f"predicted as a whole and not in a box: {self.reason}"
        size = " × ".join(f"{length:.0f}" for length in self.mm)
        place = f" round ({', '.join(f'{value:.0f}' for value in self.centre)}) mm" if self.centre else ""
        return (
            f"predicted in a box of {size} mm (right-left, front-back, up-down){place}, found by a coarse pass: "
            f"{self.passes} forward passes instead of {self.whole}; outside of it all is background"
        )


@dataclass(frozen=True)
class _Plan:
    """How large the box of one scan is, and what it costs.

    Attributes:
        size: Voxels of the plan's grid.
        crop: Voxels of the scan, in the axes of the plan's reader; None where the model was trained on whole scans.
        cost: Of the box and of the coarse pass.
    """

    size: tuple[int, ...]
    crop: tuple[int, ...] | None
    cost: Cost


def require_extent(reference: Reference | None, model: Path) -> None:
    """Refuse ``--box`` for a model that does not know how far its structures reach.

    Raises:
        SetupError: It does not.
    """
    if reference is None or not reference.places_structures:
        raise SetupError(
            f"{model}: --box needs to know where the training cases' structures lie; run `ctnet reference -m MODEL` "
            "where the training data is, or leave out --box"
        )


@dataclass(frozen=True)
class BoxJob:
    """One scan, to be predicted in a box.

    Attributes:
        reference: Of the training cases, with ``structures_mm``.
        bridge: Completes an image that lacks channels.
        begin: Told what is going to be done, before it is.
    """

    ensemble: Ensemble
    prepared: Prepared
    structures: Sequence[Structure]
    reference: Reference
    bridge: Bridge
    begin: Callable[[Cost], None]

    def predict(self, image: Tensor, properties: dict[str, Any], maps: bool) -> tuple[Prediction, Outcome]:
        """Predict a preprocessed scan (C, *grid): labels in the whole scan's grid, and what was done."""
        if self.prepared.letters == FLAT:
            return self._predict_whole(image, properties, maps), Outcome("the scan has no depth")
        grids = grids_of(self.ensemble.model, properties, image.shape[1:], self._letters)
        plan = self._plan(image, properties, grids)
        if plan.cost.whole is not None and plan.cost.passes >= plan.cost.whole:
            return self._predict_whole(image, properties, maps), Outcome("it costs no more than a box")
        self.begin(plan.cost)
        places = {name: grids.span(span.low, span.high) for name, span in self.reference.places_mm.items()}
        known = known_structures(self.structures, self.reference.volumes_ml, places)
        labels = self._look(image)
        middle, found = find_middle(labels, known, grids.plan_spacing)
        if not is_found(known, found):
            reason = f"the coarse pass found {len(found)} of {len(known)} structures"
            return self._instead(reason, image, properties, maps)
        if plan.crop is not None:
            cut = self._second_look(around(grids.to_scan(middle), plan.crop, grids.shape), plan.crop, grids, known)
            return self._predict_crop(cut, grids, maps), self._outcome(cut, plan.cost, grids, {})
        part = around(middle, plan.size, grids.plan_shape)
        if (share := share_outside(labels, part)) > MOST_OUTSIDE:
            reason = f"{100 * share:.0f} % of what the coarse pass found reaches out of the box"
            return self._instead(reason, image, properties, maps)
        with self.bridge(image) as complete:
            prediction = self.ensemble.predict(complete, properties, maps, part)
        missed = left_out(labels, part, known, grids.plan_spacing)
        return prediction, self._outcome(grids.box_in_scan(part), plan.cost, grids, missed)

    def _look(self, image: Tensor) -> NDArray[Any]:
        with self.bridge(image) as complete:
            return self.ensemble.coarse(complete)

    def _second_look(self, cut: Slices, crop: Sequence[int], grids: Grids, known: Sequence[Known]) -> Slices:
        """The crop centred by a coarse pass over itself, which is normalised as the training cases were."""
        image, properties = self.ensemble.preprocess(self.prepared.files, cut)
        inside = grids_of(self.ensemble.model, properties, image.shape[1:], grids.letters)
        middle, found = find_middle(self._look(image), known, inside.plan_spacing)
        if not is_found(known, found):
            return cut
        moved = [place.start + offset for place, offset in zip(cut, inside.to_scan(middle), strict=True)]
        return around(moved, crop, grids.shape)

    def _instead(
        self, reason: str, image: Tensor, properties: dict[str, Any], maps: bool
    ) -> tuple[Prediction, Outcome]:
        done = Outcome(reason, warnings=(f"no box: {reason}; the whole scan is predicted",))
        return self._predict_whole(image, properties, maps), done

    def _predict_whole(self, image: Tensor, properties: dict[str, Any], maps: bool) -> Prediction:
        self.begin(self.ensemble.cost(image, properties))
        with self.bridge(image) as complete:
            return self.ensemble.predict(complete, properties, maps)

    def _predict_crop(self, cut: Slices, grids: Grids, maps: bool) -> Prediction:
        image, properties = self.ensemble.preprocess(self.prepared.files, cut)
        with self.bridge(image) as complete:
            return _in_whole(self.ensemble.predict(complete, properties, maps), cut, grids.shape)

    def _plan(self, image: Tensor, properties: dict[str, Any], grids: Grids) -> _Plan:
        assert self.reference.structures_mm is not None
        wanted = [high + 2 * MARGIN_MM for high in self.reference.structures_mm.high]
        known = self.reference.extent_mm
        extent = grids.to_patient([s * n for s, n in zip(grids.spacing, grids.shape, strict=True)])
        crop = None
        if any(own > FAR * high for own, high in zip(extent, known.high, strict=True)):
            like_trained = grids.from_patient([max(pair) for pair in zip(wanted, known.low, strict=True)])
            crop = voxels(like_trained, grids.spacing, grids.shape)
            lengths = grids.to_plan([s * n for s, n in zip(grids.spacing, crop, strict=True)])
            size = voxels([m - s / 2 for m, s in zip(lengths, grids.plan_spacing, strict=True)], grids.plan_spacing,
                          grids.plan_shape)  # fmt: skip
        else:
            needed = voxels(grids.to_plan(grids.from_patient(wanted)), grids.plan_spacing, grids.plan_shape)
            patch = self.ensemble.window.patch_in(len(needed))
            # Not smaller than a patch: at its rim the network would see padding where the scan goes on.
            size = tuple(min(max(n, p), g) for n, p, g in zip(needed, patch, grids.plan_shape, strict=True))
        return _Plan(size, crop, self.ensemble.cost(image, properties, size, looks=1 if crop is None else 2))

    @property
    def _letters(self) -> str:
        """How the scan lies when the plan's reader has read it."""
        itself = self.ensemble.model.plans.image_reader_writer_class.__name__ in TURNS_ITSELF
        return "RAS" if itself else self.prepared.letters

    def _outcome(self, cut: Slices, cost: Cost, grids: Grids, missed: dict[str, float]) -> Outcome:
        lengths = [(place.stop - place.start) * step for place, step in zip(cut, grids.spacing, strict=True)]
        ends = tuple((place.start, place.stop) for place in cut[::-1])
        centre = centre_mm(ends, self.prepared.files[0]) if grids.letters == self.prepared.letters else ()
        warnings = [
            f"outside of the box the coarse pass found {volume:.2f} ml of {name}, more than inside; left out"
            for name, volume in missed.items()
        ]
        return Outcome(
            reason="",
            mm=tuple(grids.to_patient(lengths)),
            centre=centre,
            voxels=ends,
            passes=cost.passes,
            whole=cost.whole or 0,
            warnings=tuple(warnings),
        )


def _in_whole(prediction: Prediction, cut: Slices, shape: Sequence[int]) -> Prediction:
    """The prediction of a crop in the scan that it was cut out of."""

    def whole(values: NDArray[Any]) -> NDArray[Any]:
        array = np.zeros(tuple(shape), values.dtype)
        array[cut] = values
        return array

    maps = {name: whole(values) for name, values in prediction.maps.items()}
    cut_off = cut_labels(prediction.labels, cut, shape)
    return replace(prediction, labels=whole(prediction.labels), maps=maps, cut_off=cut_off)
