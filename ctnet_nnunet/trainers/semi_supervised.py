"""The frame that reciprocal learning, the mean teacher and their supervised twin share, so that they can be compared.

One network of the plan, the same labelled stream, loss, augmentation, optimiser and number of iterations; what differs
is what a step does with the unlabelled stream. The plan's ``ctnet`` block says everything under ``semi_supervised``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor, nn

from ctnet_nnunet import ranks
from ctnet_nnunet.architectures.from_plan import check_patch, network_from_plan
from ctnet_nnunet.errors import CheckpointError, PlanError
from ctnet_nnunet.semi_supervised.labels import Recomputed, full_resolution
from ctnet_nnunet.trainers.ddp import distributed
from ctnet_nnunet.trainers.schedule import PhasedScheduler, TenfoldScheduler, WarmupPolyScheduler, adamw, sgd
from ctnet_nnunet.trainers.stock_hooks import unwrapped
from ctnet_nnunet.trainers.two_streams import TwoStreamTrainer
from ctnet_nnunet.trainers.user_errors import reports_user_errors

TWIN = "nnUNetTrainerSupervisedTwin"


class SemiSupervisedTrainer(TwoStreamTrainer):
    """Base of the three; ``network`` is the student, so checkpoints, validation and prediction are stock's.

    Attributes:
        teacher: The second network, bare, or None.
    """

    teacher: nn.Module | None = None

    @staticmethod
    @reports_user_errors
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        architecture = configuration_manager.configuration["architecture"]
        check_patch(architecture, configuration_manager.configuration["patch_size"])
        return network_from_plan(architecture, num_input_channels, num_output_channels, enable_deep_supervision)

    @reports_user_errors
    def initialize(self) -> None:
        self.refuse_impossible_resume()
        self._require_preprocessed()
        if self.is_cascaded:
            raise PlanError(
                f"{self.configuration_name}: a cascade's second stage needs the first one's labels, which unlabelled "
                "scans lack; train 3d_fullres or 3d_lowres"
            )
        self.seed_everything()
        self._set_batch_size_and_oversample()
        self.dataset_class = infer_dataset_class(self.preprocessed_dataset_folder)
        self.num_input_channels = determine_num_input_channels(
            self.plans_manager, self.configuration_manager, self.dataset_json
        )
        self.loss = self._build_loss()
        self.announced_encoder_rate()
        student = self.build_student()
        self.optimizer = self.new_optimizer(student, self.options.encoder_rate)
        self.lr_scheduler = self.schedule_of(self.optimizer, self.student_phases())
        self.network = self.wrapped(student)
        self.build_teacher(student)
        self.seed_everything()  # two networks took more random numbers than the twin's one
        self.was_initialized = True

    def _new_network(self) -> nn.Module:
        network: nn.Module = self.build_network_architecture(
            self.plans_manager,
            self.configuration_manager,
            self.num_input_channels,
            self.label_manager.num_segmentation_heads,
            self.enable_deep_supervision,
        ).to(self.device)
        return nn.SyncBatchNorm.convert_sync_batchnorm(network) if self.is_ddp else network

    def build_student(self) -> nn.Module:
        """The network that predicts, with random weights."""
        return self._new_network()

    def build_teacher(self, student: nn.Module) -> None:
        """Make what a step needs beside the student."""

    def wrapped(self, network: nn.Module, recomputed: bool = False) -> nn.Module:
        """Compile and DDP; without deep supervision the lower heads get no gradient."""
        if self._do_i_compile():
            network = torch.compile(network)  # type: ignore[assignment] # the stubs call it a function
        if recomputed:
            network = Recomputed(network, self.autocast)
        return distributed(network, self.device, has_unused=True) if self.is_ddp else network

    # Optimiser, schedule and losses.

    def student_phases(self) -> list[tuple[int, int]]:
        """First epoch and length of each phase in which the student's rate rises and falls anew."""
        return [(0, self.schedule.epochs)]

    def new_optimizer(self, network: nn.Module, encoder_rate: float) -> torch.optim.Optimizer:
        if self.semi.optimizer == "sgd":
            return sgd(network, self.schedule, self.semi.momentum, encoder_rate)
        return adamw([network], self.schedule, self.betas, encoder_rate)

    def schedule_of(self, optimizer: torch.optim.Optimizer, phases: Sequence[tuple[int, int]]) -> PhasedScheduler:
        """Args:
        optimizer: Whose rate is set.
        phases: First epoch and length of each.
        """
        peak = self.schedule.learning_rate
        if self.semi.optimizer == "sgd":
            return PhasedScheduler([(start, TenfoldScheduler(optimizer, peak, epochs)) for start, epochs in phases])
        return PhasedScheduler(
            [
                (start, WarmupPolyScheduler(optimizer, peak, epochs, self.phase_warmup(epochs)))
                for start, epochs in phases
            ]
        )

    def phase_warmup(self, epochs: int) -> float:
        """Epochs of warm-up in a phase that is ``epochs`` long."""
        return self.options.warmup(self.mode, epochs)

    def _build_loss(self) -> nn.Module:
        loss: nn.Module = super()._build_loss()
        if self.semi.loss == "ce":
            _of_one_scale(loss).weight_dice = 0
            _of_one_scale(loss).register_forward_hook(_zero_as_tensor)
        return loss

    def loss_at_full_resolution(self, logits: Tensor, target: Tensor | list[Tensor]) -> Tensor:
        """The loss of logits (B, classes or regions, *patch) on the first of the targets."""
        loss: Tensor = _of_one_scale(self.loss)(logits, full_resolution(target))
        return loss

    # Training.

    @reports_user_errors
    def run_training(self) -> None:
        if not self.was_initialized:
            self.initialize()
        self.check_start()
        super().run_training()

    def check_start(self) -> None:
        """Refuse what only shows when all is built, before anything is written; says what the training learns from.

        Apart from :meth:`initialize`, which a validation alone calls, too.
        """
        _ = self.pool

    def on_train_start(self) -> None:
        super().on_train_start()
        if not self.resuming:
            self.start_teacher()
        self.print_to_log_file(f"the supervised twin, to compare with: {self.twin_command()}")

    def start_teacher(self) -> None:
        """Called before a new training, when the student may have been given weights out of a file."""

    def twin_command(self) -> str:
        """What trains the same network on the labelled cases alone, everything else being equal."""
        weights = self.pretrained_from
        words = ["nnUNetv2_train", str(int(self.plans_manager.dataset_name[7:10])), self.configuration_name, self.fold]
        words += ["-tr", TWIN, "-p", self.plans_manager.plans_name]
        words += ["-pretrained_weights", weights] if weights else []
        words += ["-device", self.device.type] if self.device.type != "cuda" else []
        return " ".join(map(str, words))

    def on_train_end(self) -> None:
        super().on_train_end()
        self.dataloader_train.finish()

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        for network in (unwrapped(self.network), self.teacher):
            if network is not None:
                network.decoder.deep_supervision = enabled  # type: ignore[union-attr]

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        if self.teacher is not None:
            self.teacher.train()

    def supervised_loss(self, network: nn.Module, images: Tensor, target: Any) -> Tensor:
        with self.autocast():
            loss: Tensor = self.loss(network(images), target)
        return loss

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        super().on_train_epoch_end(train_outputs)
        self.train_metrics = ranks.mean_metrics(means(train_outputs))
        readable = ", ".join(f"{name} {value:.4g}" for name, value in self.train_metrics.items())
        self.print_to_log_file("train", readable)

    # Validation and checkpoints, of the network that predicts.

    def _teacher_predicts(self) -> bool:
        return self.teacher is not None and self.semi.predict_with == "teacher"

    def transferable_network(self) -> nn.Module:
        student = super().transferable_network()
        return self.teacher if self._teacher_predicts() else student  # type: ignore[return-value] # it exists then

    def extra_state(self) -> dict[str, Any]:
        state: dict[str, Any] = {"pretrained_from": self.pretrained_from, "labelled_cases": self.labelled_cases}
        if self._teacher_predicts():
            state["student_weights"] = super().transferable_network().state_dict()
        elif self.teacher is not None:
            state["teacher_weights"] = self.teacher.state_dict()
        return state

    def load_extra_state(self, state: dict[str, Any]) -> None:
        unwrapped(self.network).pretrained_from = state.get("pretrained_from")  # type: ignore[assignment]
        if self.teacher is None:
            return
        student, teacher_predicts = super().transferable_network(), self._teacher_predicts()
        own, other = (self.teacher, student) if teacher_predicts else (student, self.teacher)
        keys = ("student_weights", "teacher_weights")
        key, crossed = keys if teacher_predicts else keys[::-1]
        if key in state:
            other.load_state_dict(state[key])
        elif crossed in state:  # written when the other one predicted, whose weights ``own`` was just given
            other.load_state_dict(own.state_dict())
            own.load_state_dict(state[crossed])
        else:
            raise CheckpointError(
                f"--c: the checkpoint in {self.output_folder} holds one network of the two; start without --c"
            )

    @contextmanager
    def _in_place_of_the_student(self, network: nn.Module) -> Iterator[None]:
        student, self.network = self.network, network
        try:
            yield
        finally:
            self.network = student

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        if self.teacher is not None:
            self.teacher.eval()

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Stock's entries are of the network that predicts; those of both are under its name."""
        if self.teacher is None:
            return super().validation_step(batch)
        # Stock's step takes the ignore label out of the target it was given.
        target = batch["target"]
        copy = [item.clone() for item in target] if isinstance(target, list) else target.clone()
        of_student = super().validation_step(batch)
        with self._in_place_of_the_student(self.teacher):
            of_teacher = super().validation_step({**batch, "target": copy})
        return {
            **(of_teacher if self._teacher_predicts() else of_student),
            **{f"student_{name}": value for name, value in of_student.items()},
            **{f"teacher_{name}": value for name, value in of_teacher.items()},
        }

    def on_validation_epoch_end(self, val_outputs: list[dict[str, Any]]) -> None:
        super().on_validation_epoch_end(val_outputs)
        self.validation_metrics = {}
        if self.teacher is None:
            return
        for name in ("student", "teacher"):
            self.validation_metrics[f"{name}_dice"] = self._foreground_dice(val_outputs, name)
        self.print_to_log_file(
            ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in self.validation_metrics.items())
        )

    def _foreground_dice(self, outputs: list[dict[str, Any]], name: str) -> float:
        """Mean over classes or regions of the Dice over all patches and processes, as stock computes its own."""
        counts = np.array([sum(output[f"{name}_{kind}_hard"] for output in outputs) for kind in ("tp", "fp", "fn")])
        tp, fp, fn = np.sum(ranks.gathered_objects(counts), axis=0)
        whole = 2 * tp + fp + fn
        present = whole > 0
        return float((2 * tp[present] / whole[present]).mean()) if present.any() else float("nan")

    def epoch_scalars(self) -> dict[str, float]:
        train = {f"train/{name}": value for name, value in self.train_metrics.items()}
        return {**super().epoch_scalars(), **train, **self.validation_metrics}

    @reports_user_errors
    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        network = self.teacher if self._teacher_predicts() and self.teacher is not None else self.network
        with self._in_place_of_the_student(network):
            super().perform_actual_validation(save_probabilities)
        self.print_to_log_file(f"the supervised twin, to compare with: {self.twin_command()}")


def _of_one_scale(loss: nn.Module) -> Any:
    """The loss inside the deep supervision wrapper, if it is in one."""
    return getattr(loss, "loss", loss)


def _zero_as_tensor(loss: nn.Module, arguments: tuple[Any, ...], value: Tensor | int) -> Tensor:
    """Without Dice, stock's loss of a batch in which all is ignored is the number 0, which has no gradient."""
    return value if isinstance(value, Tensor) else (0.0 * arguments[0]).sum()


def means(outputs: list[dict[str, Any]]) -> dict[str, float]:
    """Mean of every entry over the steps in which it was measured; entries that never were are left out."""
    found = {}
    for name in outputs[0]:
        values = [output[name] for output in outputs if np.isfinite(output[name])]
        if values:
            found[name] = float(np.mean(values))
    return found
