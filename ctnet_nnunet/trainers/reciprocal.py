"""``-tr nnUNetTrainerReciprocal``: semi-supervised reciprocal learning on the plan's network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ctnet_nnunet.checkpoints import HEADS
from ctnet_nnunet.errors import CheckpointError, PlanError
from ctnet_nnunet.semi_supervised.labels import full_resolution
from ctnet_nnunet.semi_supervised.reciprocal import Losses, ReciprocalStep
from ctnet_nnunet.trainers.phases import Phase, Phases
from ctnet_nnunet.trainers.schedule import encoder_rate_of, optimizer_misfit
from ctnet_nnunet.trainers.semi_supervised import SemiSupervisedTrainer, means
from ctnet_nnunet.trainers.stock_hooks import unwrapped
from ctnet_nnunet.trainers.teacher_weights import Learner, kind_of, teacher_weights

NAN = float("nan")
DEGENERATE_SHARE = 0.01
MEASURED_STEPS = 4
"""In how many steps of an epoch, at most, the feedback's share is measured."""


class nnUNetTrainerReciprocal(SemiSupervisedTrainer):
    """The student learns from the teacher's pseudo-labels, the teacher from labels and from how these helped.

    Three phases: the teacher alone, on labels (``teacher_pretraining``, none with ``teacher_weights``); reciprocal
    learning; and, if asked for, the student alone, on labels.
    """

    _warned = False
    _teachers_epochs: int | None = None
    """Of the training that is gone on with; None in a new one."""

    @property
    def phases(self) -> Phases:
        """Of the plan, but a training that is gone on with keeps what it has begun."""
        planned = Phases.planned(self.semi, self.schedule.epochs)
        return planned if self._teachers_epochs is None else replace(planned, teachers=self._teachers_epochs)

    @property
    def phase(self) -> Phase:
        """Who learns in the current epoch."""
        return self.phases.at(self.current_epoch)

    def student_phases(self) -> list[tuple[int, int]]:
        return self.phases.student()

    @staticmethod
    def planned_costs(options: Any, epochs: int) -> list[float]:
        return Phases.planned(options.semi_supervised, epochs).costs()

    def costs_of_epochs(self) -> list[float]:
        return self.phases.costs()

    def build_student(self) -> nn.Module:
        # First the one that learns from labels, so that it starts with the twin's random weights: in a short training
        # their draw moves Dice by more than the method.
        self.teacher = self._new_network()
        return self._new_network()

    def build_teacher(self, student: nn.Module) -> None:
        if not self.phases.are_complete:
            raise PlanError(self._incomplete("lower them, or raise epochs"))
        assert self.teacher is not None
        self._build_teacher_optimizer()
        self.teacher_in_training = self.wrapped(self.teacher, self.semi.recompute_teacher)
        self.step = ReciprocalStep(
            self.network,
            self.teacher_in_training,
            self.optimizer,
            self.teacher_optimizer,
            Losses(self.loss, self.loss_at_full_resolution, self._pseudo_loss),
            self.semi.reciprocal(),
            regions=self.label_manager.has_regions,
            clip_norm=self.clip_norm,
            autocast=self.autocast,
            scaler=self.grad_scaler,
        )

    def _incomplete(self, remedy: str) -> str:
        phases = self.phases
        first, last = phases.teachers, phases.finetuning
        return (
            f"ctnet options semi_supervised.teacher_pretraining and student_finetune_epochs={last}: of the "
            f"{phases.epochs} epochs {first} are the teacher's and {last} the student's alone, so none is left for "
            f"reciprocal learning; {remedy}"
        )

    def _build_teacher_optimizer(self) -> None:
        assert self.teacher is not None
        self.teacher_optimizer = self.new_optimizer(self.teacher, self._encoder_rate_of_teacher())
        self.teacher_schedule = self.schedule_of(self.teacher_optimizer, self.phases.teacher())

    def _follow_pretrained_weights(self) -> None:
        """Weights come in when all is built: only then is it known whether the teacher's encoder is given."""
        if encoder_rate_of(self.teacher_optimizer.param_groups) != self._encoder_rate_of_teacher():
            self._build_teacher_optimizer()
            self.step.teacher_optimizer = self.teacher_optimizer

    def _encoder_rate_of_teacher(self) -> float:
        """The option is for encoders that were given; a random one learns as fast as the rest."""
        given = self.teacher_takes_pretrained or self.semi.teacher_weights is not None
        return self.options.encoder_rate if given else 1.0

    @property
    def teacher_takes_pretrained(self) -> bool:
        """Unless said otherwise it does where the student starts from it, which would lose these weights."""
        wanted: bool | None = self.semi.teacher_from_pretrained
        if wanted is not None:
            return wanted
        is_start = self.semi.student_from_teacher and self.semi.teacher_weights is None
        return is_start and self.pretrained_from is not None

    def check_start(self) -> None:
        super().check_start()
        if self.resuming:
            return
        if self.semi.teacher_from_pretrained and self.semi.teacher_weights is not None:
            raise PlanError(
                "ctnet options semi_supervised.teacher_weights and semi_supervised.teacher_from_pretrained=true: the "
                "teacher can start from one of them; set teacher_weights to null, or teacher_from_pretrained to false"
            )
        if self.semi.teacher_from_pretrained and self.pretrained_from is None:
            raise CheckpointError(
                "ctnet option semi_supervised.teacher_from_pretrained=true, but no -pretrained_weights FILE was given; "
                "give it, or set the option to false"
            )
        if self.semi.student_from_teacher and self.pretrained_from and not self.teacher_takes_pretrained:
            other_start = self.semi.teacher_weights is not None
            remedy = "leave -pretrained_weights out" if other_start else "set teacher_from_pretrained=true"
            raise PlanError(
                "ctnet option semi_supervised.student_from_teacher=true: the teacher's weights would replace those "
                f"that -pretrained_weights gives to the student; {remedy}, or set student_from_teacher to false"
            )
        if self.semi.teacher_weights is not None:
            self._weights_of_teacher()
        elif self.semi.student_from_teacher and self.phases.teachers == 0:
            raise PlanError(
                "ctnet option semi_supervised.student_from_teacher=true: the teacher has learned nothing by then; set "
                "teacher_pretraining above 0, or student_from_teacher to false, or give teacher_weights"
            )

    def _refuse_frozen_random_encoder(self) -> None:
        starts_later = self.semi.student_from_teacher and self.semi.teacher_weights is not None
        if not starts_later:
            super()._refuse_frozen_random_encoder()

    def _weights_of_teacher(self) -> dict[str, Tensor]:
        assert self.teacher is not None
        kind = kind_of(self.plans_manager.plans, self.configuration_manager.configuration, self.dataset_json)
        hides = self._semi_split() is not None
        wanted_by = Learner(self.plans_manager.dataset_name, self.fold, frozenset(self.labelled_cases), hides)
        return teacher_weights(self._file_of_teacher(), self.teacher.state_dict(), kind, wanted_by)

    def _file_of_teacher(self) -> Path:
        return Path(str(self.semi.teacher_weights).replace("{fold}", str(self.fold)))

    def start_teacher(self) -> None:
        assert self.teacher is not None
        self._follow_pretrained_weights()
        if self.semi.teacher_weights is not None:
            self.teacher.load_state_dict(self._weights_of_teacher())
            self.print_to_log_file(f"teacher initialised from {self._file_of_teacher()}")
        if not self.teacher_takes_pretrained:
            return
        own = unwrapped(self.network).state_dict()
        # Pretrained heads segment nothing yet, and the student's would make both start with the same.
        self.teacher.load_state_dict({key: value for key, value in own.items() if HEADS not in key}, strict=False)
        self.print_to_log_file(f"teacher, too, initialised from {self.pretrained_from}")

    def _pseudo_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The trainer's loss on pseudo-labels, in the form in which nnU-Net's losses want their targets."""
        if not self.label_manager.has_regions:
            return self.loss_at_full_resolution(logits, labels[:, None])
        if self.label_manager.has_ignore_label:  # the last channel says where to ignore: nowhere
            labels = torch.cat([labels, torch.zeros_like(labels[:, :1])], 1)
        return self.loss_at_full_resolution(logits, labels)

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        if self.phase != "student":
            self.teacher_schedule.step(self.current_epoch)
        starts = self.current_epoch == self.phases.teachers and not self._epoch_outputs
        if starts:
            self.start_reciprocal()
        self.dataloader_train.draw_unlabelled = self.phase == "reciprocal"
        self.print_to_log_file(f"phase: {self.phase}")

    def start_reciprocal(self) -> None:
        """The change of phase: if asked for, the teacher's optimiser starts anew and the student as the teacher is."""
        if self.semi.teacher_restarts:
            self.teacher_optimizer.state.clear()
        if self.semi.student_from_teacher:
            assert self.teacher is not None
            unwrapped(self.network).load_state_dict(self.teacher.state_dict())
            self.print_to_log_file("the student starts with the teacher's weights")

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        images, target = self.labelled(batch)
        if self.phase == "reciprocal":
            measured = is_measured(len(self._epoch_outputs), self.num_iterations_per_epoch)
            outputs = self.step(images, target, self.unlabelled(batch), measure_feedback=measured)
            self.count_step(outputs["loss"] == outputs["loss"])  # nan where it was skipped
            return outputs
        if self.phase == "teacher":
            self.teacher_optimizer.zero_grad(set_to_none=True)
            supervised = self.supervised_loss(self.teacher_in_training, images, target)
            loss = self.optimise(supervised, self.teacher_optimizer)
        else:
            self.optimizer.zero_grad(set_to_none=True)
            with self.autocast():  # at full resolution, as before: its other heads have not learned anything
                supervised = self.loss_at_full_resolution(full_resolution(self.network(images)), target)
            loss = self.optimise(supervised)
        return {**self.step.nothing(self.label_manager.num_segmentation_heads), "loss": loss}

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        super().on_train_epoch_end(train_outputs)
        if self.phase == "reciprocal":
            sizes = means([{"abs_h": abs(output["h"])} for output in train_outputs])
            self.train_metrics |= sizes
            self.print_to_log_file(f"mean |h| {sizes.get('abs_h', NAN):.4g}")
            self.warn_of_silence()

    def warn_of_silence(self) -> None:
        """Say once that the feedback is too weak; not while the rate rises, and with it the student's steps and h."""
        share, first = self.train_metrics.get("feedback_share", NAN), self.phases.teachers
        warm = self.current_epoch - first >= self.phase_warmup(self.schedule.epochs - first)
        if self._warned or not warm or not share < DEGENERATE_SHARE:
            return
        self._warned = True
        self.print_to_log_file(
            f"WARNING: the feedback's gradient is {100 * share:.2g} % of the labels' in this epoch, so it does next to "
            "nothing and the teacher is a supervised one; semi_supervised.feedback_scale raises it, feedback_baseline "
            "takes away what is the same in every step (said once)"
        )

    def extra_state(self) -> dict[str, Any]:
        return {
            **super().extra_state(),
            "teacher_optimizer_state": self.teacher_optimizer.state_dict(),
            "reciprocal_step": self.step.state_dict(),
            "pretraining_epochs": self.phases.teachers,
            "student_from_teacher": self.semi.student_from_teacher,
            "teacher_restarts": self.semi.teacher_restarts,
        }

    def _refuse_another_start(self, state: Mapping[str, Any]) -> None:
        """The rates of both networks, and what the student starts with, follow from these."""
        for key in ("student_from_teacher", "teacher_restarts"):
            now = getattr(self.semi, key)
            if (then := state.get(key, now)) != now:
                raise CheckpointError(
                    f"--c: the training in {self.output_folder} was begun with semi_supervised.{key}="
                    f"{str(then).lower()}, now it is {str(now).lower()}; set it back, or train anew"
                )

    def load_extra_state(self, state: dict[str, Any]) -> None:
        super().load_extra_state(state)
        if not self.resuming:  # a validation, in which nothing learns any more
            return
        self._refuse_another_start(state)
        self._follow_pretrained_weights()
        loaded = state["teacher_optimizer_state"]
        if misfit := optimizer_misfit(self.teacher_optimizer, loaded):
            raise CheckpointError(
                f"--c: the teacher in {self.output_folder} was {misfit}; set that, teacher_weights and "
                "teacher_from_pretrained back, or train anew"
            )
        self.teacher_optimizer.load_state_dict(loaded)
        self.step.load_state_dict(state["reciprocal_step"])
        self._keep_to_what_was_begun(state.get("pretraining_epochs", self.phases.teachers))

    def _keep_to_what_was_begun(self, before: int) -> None:
        """Of another number of epochs the teacher's share is another one.

        A training in it follows, but no epoch that was begun changes its phase; one that is behind it, or whose teacher
        would now be given weights, stays as it was.
        """
        planned = self.phases.teachers
        if before == 0 or planned == 0 or self.current_epoch >= before:
            first = before
        else:
            first = max(planned, self.current_epoch + bool(self._epoch_outputs))
        if first != planned:
            self._teachers_epochs = first
            self.print_to_log_file(f"the teacher trains alone for {first} epochs; the plan says {planned}")
            self.lr_scheduler = self.schedule_of(self.optimizer, self.student_phases())
            self.teacher_schedule = self.schedule_of(self.teacher_optimizer, self.phases.teacher())
        learned_together = self.current_epoch > self.phases.teachers
        if not (learned_together or self.phases.are_complete):
            raise CheckpointError(f"--c: {self._incomplete('raise epochs, or train anew')}")


def is_measured(step: int, steps: int) -> bool:
    """Whether the feedback's share is measured in this step of an epoch, counted from 0: it costs a backward pass."""
    return step % max(8, -(-steps // MEASURED_STEPS)) == 0
