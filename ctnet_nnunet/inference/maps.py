"""Maps of confidence as images in the grid of a label map."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray


def map_image(values: NDArray[np.float32], labels: Path) -> Any:
    """A float image of ``values``, in the axes of nnU-Net's reader, with the geometry of the label map ``labels``."""
    written = sitk.ReadImage(str(labels))
    image = sitk.GetImageFromArray(values.astype(np.float32).reshape(sitk.GetArrayViewFromImage(written).shape))
    image.CopyInformation(written)
    return image
