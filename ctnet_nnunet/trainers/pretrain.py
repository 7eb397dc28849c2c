"""``-tr nnUNetTrainerCTNetPretrain``: self-supervised pretraining on imagesUn and the images of the fold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.collate_outputs import collate_outputs
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from torch import nn

from ctnet_nnunet import ranks
from ctnet_nnunet.architectures.features import decoder_parameters
from ctnet_nnunet.errors import PlanError
from ctnet_nnunet.planning.options import Mode
from ctnet_nnunet.pretext import PRETEXTS
from ctnet_nnunet.pretext.base import PretextContext, PretextModel, build_pretext
from ctnet_nnunet.pretext.masked_features import COLLAPSED_STD
from ctnet_nnunet.trainers.ctnet import nnUNetTrainerCTNet
from ctnet_nnunet.trainers.ddp import distributed
from ctnet_nnunet.trainers.lateral_mirroring import MirrorPlan
from ctnet_nnunet.trainers.pretrain_data import FixedBatches, PretrainLoader, inside_size, pretrain_transforms
from ctnet_nnunet.trainers.unlabeled_scans import checked_unlabeled_folder, refuse_validation_cases
from ctnet_nnunet.trainers.user_errors import reports_user_errors
from ctnet_nnunet.unlabeled.dataset import PooledDataset, unlabeled_identifiers

HIGHER_IS_BETTER = ("rotation/accuracy", "volume_fusion/dice", "imaging_planes/overlap")
HOLD_OUT_FROM, HOLD_OUT_SHARE = 20, 0.05


class nnUNetTrainerCTNetPretrain(nnUNetTrainerCTNet):
    """The pretext tasks of the plan's ``ctnet`` block on the CTNet that fine-tuning will use.

    ``network_weights`` of its checkpoint are the network's own, so they load with stock ``-pretrained_weights``;
    heads, EMA teacher and generator lie under a key of ours.
    """

    mode: ClassVar[Mode] = "pretrain"
    needs_labelled_cases: ClassVar[bool] = False
    foreign_views: ClassVar[frozenset[str]] = frozenset({"host"})
    betas: ClassVar[tuple[float, float]] = (0.9, 0.95)
    clip_norm: ClassVar[float] = 1.0

    @reports_user_errors
    def initialize(self) -> None:
        self.refuse_impossible_resume()
        self._check_views()
        self._require_preprocessed()
        if self.is_cascaded:
            raise PlanError(
                f"{self.configuration_name}: a cascade's second stage needs the first one's labels, which pretraining "
                "does not have; pretrain 3d_fullres or 3d_lowres"
            )
        self.seed_everything()
        self._set_batch_size_and_oversample()
        self.dataset_class = infer_dataset_class(self.preprocessed_dataset_folder)
        self.num_input_channels = determine_num_input_channels(
            self.plans_manager, self.configuration_manager, self.dataset_json
        )
        self.network = self.build_network_architecture(
            self.plans_manager,
            self.configuration_manager,
            self.num_input_channels,
            self.label_manager.num_segmentation_heads,
            self.enable_deep_supervision,
        ).to(self.device)
        self.pool, self.held_out = self._pools()
        self.context = self._context()
        self.pretext = build_pretext(
            PRETEXTS, self.network, self.context, self.pretext_weights(), self.pretext_options()
        ).to(self.device)
        tasks = ", ".join(f"{task} {weight:g}" for task, weight in self.pretext.weights.items())
        self.print_to_log_file(f"pretext tasks and the weights of their losses: {tasks}")
        self.optimizer, self.lr_scheduler = self.configure_optimizers()
        self.wrapped = self._wrapped(self.pretext)
        self.generator = torch.Generator().manual_seed(self.schedule.seed + self.local_rank)
        self.was_initialized = True

    def pretext_weights(self) -> dict[str, float]:
        """Task → weight of its loss."""
        return dict(self.options.pretext)

    def pretext_options(self) -> dict[str, Any]:
        """Values for the fields of the tasks' options."""
        return dict(self.options.model_dump())

    def downstream_trainer(self) -> str:
        """The supervised trainer that builds the same network from this plan."""
        return "nnUNetTrainerCTNet"

    def _check_views(self) -> None:
        """Refuse tasks whose views this trainer's loader does not make, before anything is read."""
        wanted = [task for task, weight in self.pretext_weights().items() if weight > 0 and task in PRETEXTS]
        if foreign := [task for task in wanted if PRETEXTS[task].views & self.foreign_views]:
            raise PlanError(
                f"ctnet option pretext: {foreign[0]} is not for {self.__class__.__name__}; train it with "
                "-tr nnUNetTrainerImagingPlanes, or give it the weight 0"
            )

    def _optimised_modules(self) -> list[nn.Module]:
        return [self.pretext]

    def _wrapped(self, pretext: PretextModel) -> nn.Module:
        """Compile and DDP see the whole: network, heads and losses.

        What asks for a gradient when DDP takes the module is joined in every step, whether it got one or not.
        """
        if self.is_ddp and not pretext.trains_decoder:
            for parameter in decoder_parameters(pretext.network):
                parameter.requires_grad_(False)
        wrapped: nn.Module = pretext
        if self._do_i_compile():
            wrapped = torch.compile(pretext)  # type: ignore[assignment] # the stubs call it a function
        return distributed(wrapped, self.device, has_unused=True) if self.is_ddp else wrapped

    def _pools(self) -> tuple[PooledDataset, PooledDataset]:
        """The scans to train on and those to watch the losses on; the same ones when there are few."""
        labelled = Path(self.preprocessed_dataset_folder)
        folder = checked_unlabeled_folder(self)
        keys = self.training_keys(folder)
        pool, held_out = PooledDataset(labelled, keys, folder), PooledDataset(labelled, keys, folder)
        self.check_cases(pool)
        if len(pool.identifiers) >= HOLD_OUT_FROM:
            order = np.random.RandomState(self.schedule.seed).permutation(pool.identifiers).tolist()
            count = max(1, round(HOLD_OUT_SHARE * len(order)))
            held_out.identifiers, pool.identifiers = sorted(order[:count]), sorted(order[count:])
        self.print_to_log_file(
            f"pretraining on {len(pool.identifiers)} scans ({len(pool.unlabeled_identifiers)} unlabelled and "
            f"{len(pool.labelled_identifiers)} images of fold {self.fold} before {len(held_out.identifiers)} were set "
            "aside to watch the losses)"
            if len(pool.identifiers) != len(held_out.identifiers)
            else f"pretraining on {len(pool.identifiers)} scans ({len(pool.unlabeled_identifiers)} unlabelled, "
            f"{len(pool.labelled_identifiers)} images of fold {self.fold}); losses are watched on the same scans"
        )
        return pool, held_out

    def training_keys(self, folder: Path) -> list[str]:
        """The fold's training cases; none where no case is labelled.

        Args:
            folder: Of the preprocessed unlabelled scans.

        Raises:
            DataError: One of these is a validation case of the fold under another name.
        """
        if self._has_no_labelled_cases():
            return []
        training, validation = self.do_split()
        if self.fold != "all":
            refuse_validation_cases(self, folder, unlabeled_identifiers(folder), validation)
        keys: list[str] = training
        return keys

    def _has_no_labelled_cases(self) -> bool:
        return not self.dataset_class.get_identifiers(self.preprocessed_dataset_folder)

    def _context(self) -> PretextContext:
        patch = tuple(self.configuration_manager.patch_size)
        three_d = len(patch) == 3
        transformer = getattr(self.network, "transformer_stage", None)
        stride = [1] * len(patch)
        if transformer is not None:
            grid: tuple[int, ...] = self.network.token_grid(patch)  # type: ignore[operator]
            stride = [size // cells for size, cells in zip(patch, grid, strict=True)]
        return PretextContext(
            patch_size=patch,
            inside_size=inside_size(self.pool, patch, stride),
            spacing=tuple(self.configuration_manager.spacing),
            # nnU-Net reads arrays as (z, y, x); in scans in a canonical orientation z runs along the body.
            axial_axis=list(self.plans_manager.transpose_forward).index(0) if three_d else None,
            input_channels=self.num_input_channels,
            batch_size=self.batch_size,
        )

    def get_dataloaders(self) -> tuple[Any, FixedBatches]:
        patch = self.configuration_manager.patch_size
        _, dummy_2d, _, _ = self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        initial, transforms, inside_transforms = pretrain_transforms(
            patch, dummy_2d, self.configuration_manager.use_mask_for_norm
        )
        shared = (patch, self.context.inside_size, self.label_manager)
        views, different = self.pretext.views, self._pairs_scans()
        train = PretrainLoader(
            self.pool, self.batch_size, initial, *shared, transforms, inside_transforms, views, different
        )
        watch = PretrainLoader(self.held_out, self.batch_size, patch, *shared, None, None, views, different)
        fixed = FixedBatches(watch, self.num_val_iterations_per_epoch, self.watching_seed())
        processes = get_allowed_n_proc_DA()
        if processes == 0:
            return SingleThreadedAugmenter(train, None), fixed
        workers = NonDetMultiThreadedAugmenter(
            train, None, processes, max(6, processes // 2), seeds=None,
            pin_memory=self.device.type == "cuda", wait_time=0.002,
        )  # fmt: skip
        return workers, fixed

    def _pairs_scans(self) -> bool:
        """Whether volume fusion mixes each scan of a batch with the next one."""
        return "pair" in self.pretext.views and self.pretext_options()["fusion_pair"] == "batch"

    def watching_seed(self) -> int:
        """What the batches to watch the losses on are drawn by; each rank watches others."""
        return int(self.schedule.seed + self.local_rank * self.num_val_iterations_per_epoch)

    def on_train_start(self) -> None:
        super().on_train_start()
        if not self.resuming:
            self.start_pretext()

    def start_pretext(self) -> None:
        """Called before a new training, when the network may have been given weights out of a file."""
        self.pretext.before_training()

    def _plan_mirroring(self, axes: Sequence[int]) -> MirrorPlan:
        """Pretraining sees no label, and its views mirror (or not) by themselves."""
        return MirrorPlan(tuple(axes), None, "")

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Pretraining has no segmentation output to supervise."""

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self.wrapped.train()

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        prepared = self.pretext.prepare(self._on_device(batch), self.generator)
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            outputs = self.wrapped(prepared)
        loss = self.optimise(outputs["loss"])
        if np.isfinite(loss):
            done = self.current_epoch * self.num_iterations_per_epoch + len(self._epoch_outputs)
            self.pretext.after_step(done / (self.num_epochs * self.num_iterations_per_epoch))
        return {**_scalars(outputs), "loss": loss}

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        super().on_train_epoch_end(train_outputs)
        self.train_metrics = ranks.mean_metrics(_means(train_outputs))
        self.print_to_log_file("train", _readable(self.train_metrics))

    def on_validation_epoch_start(self) -> None:
        self.pretext.eval()
        self.validation_generator = torch.Generator().manual_seed(self.watching_seed())

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        with self.autocast():
            outputs = self.pretext(self.pretext.prepare(self._on_device(batch), self.validation_generator))
        return _scalars(outputs)

    def on_validation_epoch_end(self, val_outputs: list[dict[str, Any]]) -> None:
        self.validation_metrics = ranks.mean_metrics(_means(val_outputs))
        self.print_to_log_file("watched", _readable(self.validation_metrics))
        loss = self.validation_metrics["loss"]
        # Stock keeps the checkpoint with the best mean_fg_dice; here accuracy, Dice or a falling loss is better.
        # What the watched scans do not have (a line) is nan: nothing is better than it, so it must not be kept.
        better = [x for name in HIGHER_IS_BETTER if math.isfinite(x := self.validation_metrics.get(name, math.nan))]
        surrogate = better[0] if better else 1 / (1 + max(loss, 0.0))
        self.logger.log("mean_fg_dice", surrogate, self.current_epoch)
        self.logger.log("dice_per_class_or_region", [surrogate], self.current_epoch)
        self.logger.log("val_losses", loss, self.current_epoch)
        spread = self.train_metrics.get("masked_features/token_std", 1.0)
        if spread < COLLAPSED_STD:
            self.print_to_log_file(
                f"WARNING: the features have collapsed (token spread {spread:.1e} < {COLLAPSED_STD}): lower "
                "pretrain.learning_rate or raise teacher_momentum"
            )

    def epoch_scalars(self) -> dict[str, float]:
        watched = {f"watched/{name}": value for name, value in self.validation_metrics.items()}
        return {**super().epoch_scalars(), **{f"train/{k}": v for k, v in self.train_metrics.items()}, **watched}

    def extra_state(self) -> dict[str, Any]:
        return {"pretext_state": self.pretext.tasks.state_dict(), "generator": self.generator.get_state()}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.pretext.tasks.load_state_dict(state["pretext_state"])
        self.generator.set_state(state["generator"])
        if self.local_rank:  # it is rank 0's, and ranks draw on their own
            self.generator.manual_seed(int(torch.randint(2**31, (), generator=self.generator)) + self.local_rank)

    @reports_user_errors
    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """No segmentation to validate; the way on is printed instead."""
        file = Path(self.output_folder) / "checkpoint_final.pth"
        self.print_to_log_file(
            f"pretraining done; fine-tune with: nnUNetv2_train {int(self.plans_manager.dataset_name[7:10])} "
            f"{self.configuration_name} FOLD -tr {self.downstream_trainer()} -p {self.plans_manager.plans_name} "
            f"-pretrained_weights {file}"
        )

    def _on_device(self, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        return {
            key: value.to(self.device, non_blocking=True)
            for key, value in batch.items()
            if isinstance(value, torch.Tensor)
        }


def _scalars(outputs: Mapping[str, torch.Tensor]) -> dict[str, float]:
    return {name: float(value.detach()) for name, value in outputs.items()}


def _means(outputs: list[dict[str, Any]]) -> dict[str, float]:
    """Over the steps that have a value; nan where none has."""
    collated = collate_outputs(outputs).items()
    return {name: np.nan if np.isnan(values).all() else float(np.nanmean(values)) for name, values in collated}


def _readable(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
