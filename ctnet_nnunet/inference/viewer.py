"""A page that scrolls a scan in three planes with its labels over it, offline: nilearn's package carries its scripts.

The patient's right is on the left side, as in the report; an oblique scan is resampled to straight axes, and its labels
to the nearest voxel. It serves to look around; contours in the report and label maps are exact.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from html import escape
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk
from matplotlib.colors import ListedColormap
from nilearn.plotting import view_img

from ctnet_nnunet.evaluation.pictures import COLOURS
from ctnet_nnunet.files import write_text

MOST_VOXELS = 40_000_000
"""Above, every second voxel along the long axes is shown: the page holds the scan as one picture."""
_LINK = re.compile(r"<link\s[^>]*\bhref=[^>]*>")
"""nilearn's page names an icon on the web: opening it would tell that server."""
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# Scripts and styles of the page itself alone; nothing is loaded from anywhere.
_POLICY = (
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; img-src data:\">"
)


def write_viewer(scan: Path, labels: Path, names: Mapping[int, str], title: str, target: Path) -> None:
    """Write the page of a scan and its label map on the same 3D grid.

    Args:
        names: Label value → structure, in the order of the structures' colours.
        title: Of the page.
    """
    background, overlay = _image(scan), _image(labels)
    array = np.asarray(overlay.dataobj)
    shown = np.zeros(array.shape, np.float32)
    for number, value in enumerate(names, start=1):
        shown[array == value] = number
    colours = ListedColormap([COLOURS[number % len(COLOURS)] for number in range(len(names))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on templates and fonts; nothing that the reader of the page could act on
        view = view_img(
            nibabel.Nifti1Image(shown, overlay.affine),
            bg_img=background,
            cut_coords=_centre(shown, overlay.affine),
            cmap=colours,
            threshold=0.5,
            vmin=0.5,
            vmax=len(names) + 0.5,
            symmetric_cmap=False,
            resampling_interpolation="nearest",
            opacity=0.6,
            colorbar=False,
            black_bg=True,
            radiological=True,
        )
    page = _LINK.sub("", view.get_standalone())
    page = page.replace("<head>", f"<head>\n{_POLICY}<title>{escape(title)}</title>", 1)
    write_text(target, page.replace("<body>", f"<body>\n{_legend(title, list(names.values()))}", 1))


def _legend(title: str, names: list[str]) -> str:
    """Which colour is what, above the planes."""
    items = [
        '<span style="white-space:nowrap;margin-right:1.2em"><span style="display:inline-block;width:0.8em;'
        f'height:0.8em;margin-right:0.4em;background:{COLOURS[number % len(COLOURS)]}"></span>{escape(name)}</span>'
        for number, name in enumerate(names)
    ]
    style = "font-family:sans-serif;line-height:1.6;margin:0.4em 0"
    return (
        f'<div style="{style}"><strong>{escape(title)}</strong>. Click or drag in a plane to move the others. '
        f"The patient’s right is on the left.<br>{''.join(items)}</div>"
    )


def _image(file: Path) -> nibabel.Nifti1Image:
    """As nibabel's image with the geometry that SimpleITK reads, for every format that nnU-Net takes."""
    image = sitk.ReadImage(str(file))
    step = [2 if image.GetNumberOfPixels() > MOST_VOXELS and size > 128 else 1 for size in image.GetSize()]
    image = image[:: step[0], :: step[1], :: step[2]]
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return nibabel.Nifti1Image(sitk.GetArrayFromImage(image).T.astype(np.float32), _LPS_TO_RAS @ affine)


def _centre(shown: np.ndarray, affine: np.ndarray) -> tuple[float, float, float] | None:
    """The middle of all structures in mm (RAS)."""
    hit = np.argwhere(shown > 0)
    if not len(hit):
        return None
    x, y, z = (affine @ [*hit.mean(axis=0), 1.0])[:3]
    return float(x), float(y), float(z)
