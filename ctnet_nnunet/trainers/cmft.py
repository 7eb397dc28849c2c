"""``-tr nnUNetTrainerCMFT``: adversarial feature transition between two pairs of sequences, without labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from torch import Tensor, nn

from ctnet_nnunet.checkpoints import HEADS
from ctnet_nnunet.cross_modality.cmft import CMFTStep, Discriminators, Translators, cycle_loss
from ctnet_nnunet.errors import PlanError
from ctnet_nnunet.planning.cross_modality import check_discriminator_patch, fusion_network
from ctnet_nnunet.planning.options import Mode
from ctnet_nnunet.trainers.cross_modality import CrossModalityTrainer
from ctnet_nnunet.trainers.ddp import copy_from_first, distributed
from ctnet_nnunet.trainers.pretrain import nnUNetTrainerCTNetPretrain
from ctnet_nnunet.trainers.pretrain_data import CropLoader, FixedBatches
from ctnet_nnunet.trainers.schedule import ConstantScheduler
from ctnet_nnunet.trainers.semi_supervised_data import augmenter
from ctnet_nnunet.trainers.translation_pictures import write_translations
from ctnet_nnunet.trainers.user_errors import reports_user_errors

JUDGED = ("discriminators", "discriminator_a", "discriminator_b")


class nnUNetTrainerCMFT(CrossModalityTrainer, nnUNetTrainerCTNetPretrain):
    """Stage 1 of cross-modality learning: a least-squares GAN with a cycle, on imagesUn and the fold's images.

    ``network`` is that of stage 2, so its ``network_weights`` start nnUNetTrainerCMFF; output layers of the generators,
    discriminators, their optimiser and the pools lie under a key of ours.
    """

    mode: ClassVar[Mode] = "cmft"
    # The paper clips no gradients; the norm is still looked at, to skip what is not finite.
    clip_norm: ClassVar[float] = float("inf")
    needs_equal_shares: ClassVar[bool] = True

    @reports_user_errors
    def initialize(self) -> None:
        self.refuse_impossible_resume()
        self._require_preprocessed()
        self.patch = self._patch()
        self.seed_everything()
        self._set_batch_size_and_oversample()
        self.dataset_class = infer_dataset_class(self.preprocessed_dataset_folder)
        self.num_input_channels = determine_num_input_channels(
            self.plans_manager, self.configuration_manager, self.dataset_json
        )
        self.announce_pairs()
        self.pool, self.held_out = self._pools()
        self.check_grids({
            **dict.fromkeys(self.pool.labelled_identifiers, "imagesTr"),
            **dict.fromkeys(self.pool.unlabeled_identifiers, "imagesUn"),
        })  # fmt: skip
        self._build_networks()
        self.optimizer, self.lr_scheduler = self.configure_optimizers()
        self.was_initialized = True

    def _patch(self) -> list[int]:
        """The patch of this stage, which may be smaller than the plan's: four networks are in memory at once."""
        options, planned = self.options.cross_modality, self.configuration_manager.patch_size
        patch = list(planned if options.cmft_patch is None else options.cmft_patch)
        if len(patch) != len(planned) or any(size > most for size, most in zip(patch, planned, strict=True)):
            raise PlanError(
                f"ctnet option cross_modality.cmft_patch={patch}: wants {len(planned)} sizes, none above the plan's "
                f"patch {list(planned)}"
            )
        check_discriminator_patch(patch, options.discriminator_levels)
        return patch

    def _build_networks(self) -> None:
        options = self.options.cross_modality
        configuration = {**self.configuration_manager.configuration, "patch_size": self.patch}
        network = fusion_network(configuration, options, self.label_manager.num_segmentation_heads)
        self.network = network.to(self.device)
        if self.is_ddp:
            copy_from_first(network)  # the fusion, too, which is in the checkpoint and does not learn here
        self.knows_what_fits(network)
        dimensions = len(self.patch)
        self.translators = Translators(network, dimensions).to(self.device)
        size_a, size_b = map(len, network.pairs)
        self.discriminators = Discriminators(
            size_a, size_b, dimensions, options.features, options.discriminator_levels
        ).to(self.device)
        generator = torch.Generator().manual_seed(self.schedule.seed)  # all ranks draw the same from their common pools
        self.wrapped = self._distributed(self.translators, has_unused=True)  # the segmentation heads
        self.step = CMFTStep(
            self.wrapped, self.discriminators, self._distributed(self.discriminators), options.transition(), generator
        )

    def _distributed(self, module: nn.Module, has_unused: bool = False) -> nn.Module:
        return distributed(module, self.device, has_unused) if self.is_ddp else module

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, ConstantScheduler]:
        schedule = self.schedule
        generators = [p for name, p in self.translators.named_parameters() if HEADS not in name]
        optimizer = torch.optim.Adam(generators, schedule.learning_rate, weight_decay=schedule.weight_decay)
        self.judges_optimizer = torch.optim.Adam(
            self.discriminators.parameters(), schedule.learning_rate, weight_decay=schedule.weight_decay
        )
        both = [optimizer, self.judges_optimizer]
        return optimizer, ConstantScheduler(both, schedule.learning_rate, schedule.warmup_epochs or 0)

    def get_dataloaders(self) -> tuple[Any, FixedBatches]:
        self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        train = CropLoader(self.pool, self.batch_size, self.patch, self.label_manager, flips=True)
        watch = CropLoader(self.held_out, self.batch_size, self.patch, self.label_manager, flips=False)
        fixed = FixedBatches(watch, self.num_val_iterations_per_epoch, self.watching_seed())
        return augmenter(train, get_allowed_n_proc_DA(), self.device.type == "cuda"), fixed

    def downstream_trainer(self) -> str:
        return "nnUNetTrainerCMFF"

    def start_pretext(self) -> None:
        """There is no pretext task with a teacher to start."""

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        a, b = self._pairs_of(batch)
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            losses, made = self.step.generators(a, b)
        loss = self.optimise(losses["loss"], self.optimizer)
        outputs = {**_values(losses), "loss": loss, **dict.fromkeys(JUDGED, float("nan"))}
        if loss == loss:  # else the iteration is skipped as a whole
            self.judges_optimizer.zero_grad(set_to_none=True)
            with self.autocast():
                judged = self.step.judges(a, b, made)
            outputs |= _values(judged)
            outputs["discriminators"] = self.optimise(judged["discriminators"], self.judges_optimizer)
        return outputs

    def _pairs_of(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        images = self._on_device(batch)["crop"]
        network: Any = self.network
        a, b = network.split(images)
        return a, b

    def on_validation_epoch_start(self) -> None:
        self.translators.eval()
        self.shown: tuple[dict[str, Tensor], Tensor, Tensor] | None = None

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Cycle losses on fixed crops; adversarial ones say nothing about how good a generator is."""
        a, b = self._pairs_of(batch)
        with self.autocast():
            made = self.translators(a, b)
        if self.shown is None:
            self.shown = ({name: image[:1].float().cpu() for name, image in made.items()}, a[:1].cpu(), b[:1].cpu())
        cycles = {"cycle_a": float(cycle_loss(a, made["cycled_a"])), "cycle_b": float(cycle_loss(b, made["cycled_b"]))}
        return {"loss": sum(cycles.values()) / 2, **cycles}

    def on_validation_epoch_end(self, val_outputs: list[dict[str, Any]]) -> None:
        super().on_validation_epoch_end(val_outputs)
        every = self.options.cross_modality.pictures_every
        epoch, last = self.current_epoch + 1, self.current_epoch + 1 == self.num_epochs
        if every and self.shown is not None and self.local_rank == 0 and (epoch % every == 0 or last):
            made, a, b = self.shown
            file = Path(self.output_folder) / "pictures" / f"epoch_{epoch:04d}.png"
            write_translations(file, a, b, made, self.named_pairs())

    def extra_state(self) -> dict[str, Any]:
        return {
            **self.pairs_state(),
            "generator_heads": self.translators.heads.state_dict(),
            "discriminators": self.discriminators.state_dict(),
            "discriminators_optimizer_state": self.judges_optimizer.state_dict(),
            "transition": self.step.state(),
        }

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.translators.heads.load_state_dict(state["generator_heads"])
        self.discriminators.load_state_dict(state["discriminators"])
        self.judges_optimizer.load_state_dict(state["discriminators_optimizer_state"])
        self.step.load_state(state["transition"], self.device)


def _values(losses: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: float(loss.detach()) for name, loss in losses.items()}
