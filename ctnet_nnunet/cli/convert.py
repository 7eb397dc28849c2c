"""``ctnet convert SOURCE``: the scripts of dataset_conversion, one command each."""

from __future__ import annotations

import typer

from ctnet_nnunet.dataset_conversion.convert_bids import bids
from ctnet_nnunet.dataset_conversion.convert_brats import brats
from ctnet_nnunet.dataset_conversion.convert_cardiac_sax import cardiac_sax
from ctnet_nnunet.dataset_conversion.convert_dicom import dicom
from ctnet_nnunet.dataset_conversion.convert_freesurfer import freesurfer
from ctnet_nnunet.dataset_conversion.convert_msd import msd
from ctnet_nnunet.dataset_conversion.convert_nifti import nifti
from ctnet_nnunet.dataset_conversion.convert_planes import planes

app = typer.Typer(help="Make a raw nnU-Net dataset from what is on disk.", no_args_is_help=True)


@app.callback()
def _convert() -> None:
    pass


app.command("nifti")(nifti)
app.command("bids")(bids)
app.command("dicom")(dicom)
app.command("freesurfer")(freesurfer)
app.command("brats")(brats)
app.command("msd")(msd)
app.command("cardiac-sax")(cardiac_sax)
app.command("planes")(planes)
