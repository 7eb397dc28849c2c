"""What a case leaves behind: its label map in the scan's own grid, and what its source's kind asks for beside it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import SimpleITK as sitk

from ctnet_nnunet.errors import SetupError
from ctnet_nnunet.evaluation.metrics import Structure
from ctnet_nnunet.inference.inputs import Case
from ctnet_nnunet.inference.maps import map_image
from ctnet_nnunet.inference.model import Model
from ctnet_nnunet.inference.outputs_bids import label_names, write_description, write_sidecars
from ctnet_nnunet.inference.prepare import Prepared, back_to_the_scan


@dataclass(frozen=True)
class Delivery:
    """Where the outputs of a run go.

    Attributes:
        out: The output folder.
        workspace: For label maps on the way to their scan's grid.
        bids_root: Of the dataset that was predicted, or None.
    """

    model: Model
    structures: tuple[Structure, ...]
    out: Path
    workspace: Path
    bids_root: Path | None = None

    def label_file(self, case: Case) -> Path:
        """Where a case's label map goes."""
        return case.label_file(self.out, self.model.file_ending)

    def write_labels(self, case: Case, prepared: Prepared, labels: Any, properties: dict[str, Any]) -> Path:
        """Write the label map; returns the one that lies on the grid of ``prepared.files``.

        Raises:
            SetupError: It could not be written; nothing is left of it then.
        """
        target = self.label_file(case)
        make_folder(target.parent)
        if prepared.grid is None:
            _whole(target, lambda file: self._through_the_plan(labels, properties, file))
            return target
        turned = self.workspace / f"labels_{case.name}{self.model.file_ending}"
        self._through_the_plan(labels, properties, turned)
        image = back_to_the_scan(turned, prepared)
        _whole(target, lambda file: sitk.WriteImage(image, str(file), True))
        return turned

    def write_map(self, case: Case, prepared: Prepared, name: str, values: Any, on_scan: Path) -> None:
        """Write a float map of the voxels as ``…_NAME.nii.gz`` beside the label map, in the scan's own grid.

        Args:
            values: In the axes of nnU-Net's reader.
            on_scan: From :meth:`write_labels`; has their geometry.

        Raises:
            SetupError: It could not be written; nothing is left of it then.
        """
        labels = self.label_file(case)
        target = labels.with_name(f"{labels.name.removesuffix(self.model.file_ending)}_{name}.nii.gz")
        image = map_image(values, on_scan)
        if prepared.grid is not None:
            turned = self.workspace / f"map_{case.name}.nii.gz"
            sitk.WriteImage(image, str(turned))
            image = back_to_the_scan(turned, prepared)
        _whole(target, lambda file: sitk.WriteImage(image, str(file), True))

    def write_companions(self, case: Case) -> list[Path]:
        """Beside the label map: DICOM-SEG for a DICOM series; description, table and sidecar in a BIDS dataset.

        Raises:
            DataError: The series cannot be referred to by a DICOM-SEG.
            SetupError: A file could not be written.
        """
        target = self.label_file(case)
        if self.bids_root is not None:
            write_description(self.out, self.bids_root, f"{self.model.trainer}, {self.model.plans.dataset_name}")
            names = label_names(self.structures, self.model.dataset_json.get("regions_class_order"))
            write_sidecars(case, target, self.model.file_ending, names, self.bids_root)
        if not case.dicom:
            return []
        from ctnet_nnunet.inference.segmentation_object import write_segmentation

        file = case.segmentation_file(self.out)
        labels = sitk.ReadImage(str(target))
        write_segmentation(labels, case.images[0], case.images[1:], self.structures, self._algorithm(), file)
        return [file]

    def _through_the_plan(self, labels: Any, properties: dict[str, Any], file: Path) -> None:
        self.model.plans.image_reader_writer_class().write_seg(labels, str(file), properties)

    def _algorithm(self) -> Any:
        from ctnet_nnunet.inference.segmentation_object import Algorithm

        model = self.model
        digest = hashlib.sha256("".join(sorted(model.hashes.values())).encode()).hexdigest()
        parameters = {
            "dataset": model.plans.dataset_name,
            "plans": model.plans.plans_name,
            "folds": " ".join(model.folds),
            "model_sha256": digest,
        }
        return Algorithm(f"{model.trainer} {model.plans.dataset_name}", parameters, digest)


def make_folder(folder: Path) -> None:
    """Make a folder for outputs.

    Raises:
        SetupError: It cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(f"{folder}: cannot be made ({error.strerror}); choose another -o") from None


def _whole(target: Path, write: Callable[[Path], None]) -> None:
    """Under a name that ends up as the target only when the file is whole."""
    temporary = target.with_name(f".part_{os.getpid()}_{target.name}")
    try:
        write(temporary)
        os.replace(temporary, target)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise SetupError(f"{target}: could not be written ({reason}); free disk space or fix the rights") from None
