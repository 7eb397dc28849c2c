"""The options that every source has, with their command-line form."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from ctnet_nnunet.cores import usable_cores
from ctnet_nnunet.image_check import MAX_VOXELS

_MOST_PROCESSES = 8


@dataclass(frozen=True)
class Settings:
    """How to convert, whatever the source; one field is one option."""

    dataset_id: Annotated[int, typer.Option("-d", "--dataset-id", min=1, max=999, help="Number of the new dataset.")]
    name: Annotated[str, typer.Option("-n", "--name", help="Its name: 501 and Liver give Dataset501_Liver.")]
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder for datasets. Default: $nnUNet_raw.")] = None
    label_map: Annotated[
        str | None,
        typer.Option(
            help="CSV of number,name, or a dataset.json, or 10=left thalamus,49=…. Default: what the source says."
        ),
    ] = None
    others_background: Annotated[
        bool, typer.Option("--others-background", help="Numbers that the label map does not list become background.")
    ] = False
    reorient: Annotated[
        bool, typer.Option("--reorient", help="Accept files on the same grid whose axes are stored in another order.")
    ] = False
    resample_to_first: Annotated[
        bool, typer.Option("--resample-to-first", help="Bring channels of another grid onto the first channel's.")
    ] = False
    patients: Annotated[
        Path | None, typer.Option(help="CSV file with the columns case, patient and, if wanted, site and fold.")
    ] = None
    patient_pattern: Annotated[
        str | None, typer.Option(help="Regular expression whose first group finds the patient in a case's name.")
    ] = None
    stratify_sites: Annotated[
        bool, typer.Option("--stratify-sites", help="Spread the cases of every site over the folds.")
    ] = False
    folds: Annotated[int, typer.Option(min=2, help="Folds in splits_final.json.")] = 5
    seed: Annotated[int, typer.Option(help="Seed of the folds.")] = 12345
    processes: Annotated[
        int | None, typer.Option("-np", "--processes", min=0, help="Worker processes (0: none). Default: one per CPU.")
    ] = None
    force: Annotated[bool, typer.Option("--force", help="Replace a dataset that ctnet convert has written.")] = False
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be converted; write nothing.")] = False
    max_voxels: Annotated[int, typer.Option(min=1, help="Refuse larger scans.")] = MAX_VOXELS

    @property
    def workers(self) -> int:
        """Worker processes to start."""
        if self.processes is not None:
            return self.processes
        return min(_MOST_PROCESSES, usable_cores())
