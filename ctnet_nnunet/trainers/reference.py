"""What the training cases were like, written beside the model behind its first finished fold.

``ctnet predict`` compares new scans with it and turns them as the training's lay. Nothing here may end a training.
"""

from __future__ import annotations

from pathlib import Path


def keep_reference(model: Path, preprocessed: Path) -> str:
    """Measure nnU-Net's copies of the label maps, which lie as their images do; returns a line for the log.

    Args:
        model: The folder with plans.json, dataset.json and the folds. One that has a reference keeps it.
        preprocessed: The dataset's folder in nnUNet_preprocessed.
    """
    try:
        # Here and not above: a library that is missing for it must not keep a trainer from being found.
        from ctnet_nnunet.evaluation.reference import FILE, measure_reference, write_reference

        if (model / FILE).exists():
            return f"{FILE} is there already"
        found = measure_reference(preprocessed / "gt_segmentations", model / "dataset.json", preprocessed.name)
        return f"measured {found.cases} training cases for ctnet predict: {write_reference(found, model)}"
    except Exception as error:  # whatever it is, the network is trained
        return (
            f"the training cases were not measured ({error}); `ctnet reference` can do it later"
        )
