"""``ctnet transfer``: a checkpoint of other plans made to load with ``-pretrained_weights`` under these."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ctnet_nnunet.checkpoints import checked_weights, read_checkpoint, write_checkpoint
from ctnet_nnunet.errors import CheckpointError
from ctnet_nnunet.files import sha256
from ctnet_nnunet.planning.transfer_target import target_network
from ctnet_nnunet.weight_transfer import Transfer, transfer_weights

WRITE_REMEDY = "free disk space or fix the folder's rights, or choose another -o"


def transfer_checkpoint(
    checkpoint: Path,
    dataset: str | int,
    plans: str,
    configuration: str,
    output: Path,
    trainer: str = "nnUNetTrainerCTNet",
    min_share: float = 0.5,
    force: bool = False,
) -> Transfer:
    """Fit a checkpoint's weights to a plan's network and write a file for ``-pretrained_weights``.

    Args:
        checkpoint: A checkpoint of nnU-Net, of this package or of nnssl (``network_weights``).
        dataset: Id or name of the dataset to fine-tune on.
        plans: Name of its plans file without ending.
        configuration: The plan's configuration.
        output: The file to write.
        trainer: The trainer that will load it; it decides whether the plan's network becomes CTNet.
        min_share: Least share of parameters that must be loaded or adapted.
        force: Replace an existing file.

    Raises:
        CheckpointError: If the source is not a checkpoint, too little of it fits, or the output exists or lacks its
            folder.
        PlanError, DataError, SetupError: If the target cannot be built.
    """
    if output.exists() and not force:
        raise CheckpointError(f"{output}: exists already; choose another -o, or --force")
    if not output.parent.is_dir():
        raise CheckpointError(f"{output.parent}: no such folder; create it, or choose another -o")
    content = read_checkpoint(checkpoint)
    weights = checked_weights(content, checkpoint)
    prefixes = _nnssl_prefixes(content.get("nnssl_adaptation_plan"), checkpoint)
    target = target_network(dataset, plans, configuration, trainer)
    result = transfer_weights(
        target.network, weights, prefixes, target.image_channels, _image_channels(content.get("init_args"))
    )
    share = result.share("loaded") + result.share("adapted")
    if share < min_share:
        raise TooLittleFitsError(
            f"{checkpoint}: only {share:.1%} of the parameters fit, {min_share:.0%} are wanted; take a checkpoint of a "
            "closer plan, or lower --min-share",
            result,
        )
    origin = {
        "file": checkpoint.name,
        "sha256": sha256(checkpoint),
        "loaded": result.share("loaded"),
        "adapted": result.share("adapted"),
    }
    write_checkpoint({"network_weights": result.state, "ctnet_transfer": origin}, output, WRITE_REMEDY)
    return result


def _image_channels(init_args: Any) -> int | None:
    """How many input channels of a checkpoint's network are the image's, out of nnU-Net's record; None without one."""
    try:
        names = init_args["dataset_json"].get("channel_names") or init_args["dataset_json"]["modality"]
        return len(names)
    except (TypeError, KeyError, AttributeError):
        return None


class TooLittleFitsError(CheckpointError):
    """Too little of a checkpoint fits; ``result`` says what did."""

    def __init__(self, message: str, result: Transfer) -> None:
        super().__init__(message)
        self.result = result


def _nnssl_prefixes(plan: Any, checkpoint: Path) -> dict[str, str]:
    """Names of the pretrained encoder's parts → nnU-Net's, from the ``nnssl_adaptation_plan`` of a checkpoint."""
    if plan is None:
        return {}
    found = {key: plan.get(key) for key in ("key_to_encoder", "key_to_stem")} if isinstance(plan, Mapping) else {}
    if not found or not all(name is None or (isinstance(name, str) and name) for name in found.values()):
        raise CheckpointError(
            f"{checkpoint}: its nnssl_adaptation_plan does not name the encoder (key_to_encoder, key_to_stem); take "
            "another checkpoint"
        )
    encoder, stem = found["key_to_encoder"], found["key_to_stem"]
    prefixes = {}
    if encoder is not None:
        prefixes[encoder] = "encoder.stages" if encoder.split(".")[-1] == "stages" else "encoder"
    # A plain U-Net has no stem: there nnssl names its first stage.
    if stem is not None and not f"{stem}.".startswith(f"{encoder}."):
        prefixes[stem] = "encoder.stem"
    return prefixes
