"""What both stages of cross-modality learning share: the pairs, settled from the dataset, and the network.

The pairs depend on dataset.json, which nnU-Net's static hook for building networks does not get. So the constructor
settles them, as numbers, in the plan that it was given; nnU-Net saves that plan with the model, and prediction builds
the same network from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from nnunetv2.paths import nnUNet_raw
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from ctnet_nnunet.architectures.cross_modality import CMFFNet
from ctnet_nnunet.errors import CheckpointError, PlanError
from ctnet_nnunet.image_check import read_image_header, refuse_other_grids
from ctnet_nnunet.planning.cross_modality import fusion_network, resolve_pairs
from ctnet_nnunet.planning.options import read_options
from ctnet_nnunet.trainers.ctnet import nnUNetTrainerCTNet
from ctnet_nnunet.trainers.user_errors import reports_user_errors

KEY = "cross_modality"


class CrossModalityTrainer(nnUNetTrainerCTNet):
    """Base of nnUNetTrainerCMFT and nnUNetTrainerCMFF."""

    @reports_user_errors
    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008  (the base class's signature, verbatim)
    ) -> None:
        if configuration in plans["configurations"]:
            settle(plans, configuration, dataset_json)
        super().__init__(plans, configuration, fold, dataset_json, device)
        if self.is_cascaded:
            raise PlanError(f"{configuration}: a cascade's second stage has no pairs; train 3d_fullres or 3d_lowres")

    @staticmethod
    @reports_user_errors
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        configuration = configuration_manager.configuration
        options = read_options(configuration.get("ctnet"), f"plans {plans_manager.plans['plans_name']}")
        return fusion_network(configuration, options.cross_modality, num_output_channels, enable_deep_supervision)

    def _do_i_compile(self) -> bool:
        """Off: the network is entered at its branches, too, and with or without a pair."""
        return False

    def channel_names(self) -> list[str]:
        """Of dataset.json, in order."""
        return _channel_names(self.dataset_json)

    def named_pairs(self) -> list[list[str]]:
        """The names of the channels of pair a and of pair b."""
        names = self.channel_names()
        return [[names[int(channel)] for channel in pair] for pair in self.options.cross_modality.pairs or []]

    def announce_pairs(self) -> None:
        """Print which sequences are pair a and which pair b, and which neither."""
        a, b = self.named_pairs()
        unused = [name for name in self.channel_names() if name not in (*a, *b)]
        rest = f"; {', '.join(unused)} not used" if unused else ""
        self.print_to_log_file(f"pair a: {', '.join(a)}; pair b: {', '.join(b)}{rest}")

    def check_grids(self, cases: Mapping[str, str]) -> None:
        """Refuse a case whose sequences lie on different grids, which nnU-Net only warns of.

        Args:
            cases: Case → folder of the raw dataset (``imagesTr``, ``imagesUn``).

        Raises:
            DataError: Naming the case and both grids. Nothing is looked at where the raw data are not at hand.
        """
        if not nnUNet_raw.is_set():
            return
        root, ending = Path(str(nnUNet_raw)) / self.plans_manager.dataset_name, self.dataset_json["file_ending"]
        for case, folder in cases.items():
            files = [root / folder / f"{case}_{channel:04d}{ending}" for channel in range(len(self.channel_names()))]
            if all(file.is_file() for file in files):
                refuse_other_grids(case, [(file.name, read_image_header(file)) for file in files])

    def refuse_other(self, file: str, checkpoint: Mapping[str, Any]) -> None:
        """Refuse weights of other pairs or another LeakyReLU, although their shapes may fit.

        Raises:
            CheckpointError: Naming what both have.
        """
        other = checkpoint.get("ctnet", {}).get(KEY, {})
        theirs, mine = other.get("pairs"), self.named_pairs()
        if theirs is not None and [list(pair) for pair in theirs] != mine:
            raise CheckpointError(
                f"{file}: its pairs are {_written(theirs)}, this training's are {_written(mine)}; train the first "
                "stage with these, or set cross_modality.pairs to those"
            )
        slope = self.options.cross_modality.negative_slope
        if other.get("negative_slope", slope) != slope:
            raise CheckpointError(
                f"{file}: was trained with cross_modality.negative_slope={other['negative_slope']}, this training has "
                f"{slope}; transferred features would change, so set both alike"
            )

    def knows_what_fits(self, network: nn.Module) -> None:
        """Have ``-pretrained_weights`` ask :meth:`refuse_other`."""
        network.refuse_other = self.refuse_other  # type: ignore[assignment] # not a module

    def pairs_state(self) -> dict[str, Any]:
        """What a later stage compares, for the checkpoint."""
        options = self.options.cross_modality
        return {KEY: {"pairs": self.named_pairs(), "arch": options.arch, "negative_slope": options.negative_slope}}


def settle(plans: dict[str, Any], configuration: str, dataset_json: Mapping[str, Any]) -> None:
    """Write the pairs as numbers, and whether labels are regions, into the plan's ``ctnet`` block.

    Raises:
        DataError, PlanError: From :func:`~ctnet_nnunet.planning.cross_modality.resolve_pairs`.
    """
    manager = PlansManager(plans)
    block = manager.get_configuration(configuration).configuration.get("ctnet")
    options = read_options(block, f"plans {plans['plans_name']}").cross_modality
    names = dict(enumerate(_channel_names(dataset_json)))
    pairs = resolve_pairs(options.pairs, {str(number): name for number, name in names.items()})
    labels: LabelManager = manager.get_label_manager(dataset_json)
    settled = {"pairs": [list(pair) for pair in pairs], "regions": bool(labels.has_regions)}
    own = (block or {}).get(KEY) or {}
    plans["configurations"][configuration]["ctnet"] = {**(block or {}), KEY: {**own, **settled}}


def _channel_names(dataset_json: Mapping[str, Any]) -> list[str]:
    names = dataset_json.get("channel_names", dataset_json.get("modality", {}))
    return [str(names[key]) for key in sorted(names, key=int)]


def unwrapped_fusion(network: nn.Module) -> CMFFNet:
    """The fusion network inside a DistributedDataParallel wrapper."""
    bare = network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network
    assert isinstance(bare, CMFFNet)
    return bare


def _written(pairs: Any) -> str:
    return " and ".join("(" + ", ".join(map(str, pair)) + ")" for pair in pairs)
