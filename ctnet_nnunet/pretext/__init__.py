"""Self-supervised pretext tasks: pure torch units that know no trainer and no nnU-Net.

A new task is one file with a subclass of :class:`~ctnet_nnunet.pretext.base.PretextTask` and one line in ``PRETEXTS``;
the fields of its ``Options`` become keys of the plan's ``ctnet`` block.
"""

from __future__ import annotations

from ctnet_nnunet.pretext.base import PretextTask
from ctnet_nnunet.pretext.imaging_planes import ImagingPlanes
from ctnet_nnunet.pretext.masked_features import MaskedFeatures
from ctnet_nnunet.pretext.rotation import Rotation
from ctnet_nnunet.pretext.volume_fusion import VolumeFusion

PRETEXTS: dict[str, type[PretextTask]] = {
    "rotation": Rotation,
    "masked_features": MaskedFeatures,
    "volume_fusion": VolumeFusion,
    "imaging_planes": ImagingPlanes,
}
