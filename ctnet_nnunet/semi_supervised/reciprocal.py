"""Reciprocal learning: a teacher that learns from how its pseudo-labels helped the student.

Zeng, Huang, Zhong, Sun, Han, Lin, Ni and Wang, "Reciprocal Learning for Semi-supervised Segmentation", MICCAI 2021, doi
10.1007/978-3-030-87196-3_33; Zeng et al., "A reciprocal learning strategy for semisupervised medical image
segmentation", Med Phys 50(1):163-177, 2023, doi 10.1002/mp.15923. The feedback is that of Meta Pseudo Labels (Pham et
al., CVPR 2021) with hard labels.

Two networks of one architecture, the teacher θ_T and the student θ_S; labelled images (x_l, y_l), unlabelled x_u. One
iteration:

1. The teacher labels x_u: ŷ. The student takes one step on L(S(x_u), ŷ), whose gradient is g_u: θ_S becomes θ_S'.
2. The student is looked at on labelled images: g_l is the gradient of R = L(S(x_l), y_l) at θ_S'. It is never applied.
3. The feedback h = η⟨g_u, g_l⟩, with the learning rate η, is to first order R(θ_S) - R(θ_S'): how much learning from
   ŷ has helped. The other form measures that difference itself, which holds for large steps and other optimisers.
4. The teacher takes one step on L(T(x_l), y_l) + h·(-log P_T(ŷ)): where ŷ helped (h > 0) it becomes surer of ŷ, where
   it did harm less sure.

Hard labels are what makes it work: against its own soft labels the gradient of the teacher's cross-entropy is 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ctnet_nnunet.ranks import averaged
from ctnet_nnunet.semi_supervised.labels import (
    HowToLabel,
    full_resolution,
    label_shares,
    negative_log_likelihood,
    pseudo_labels,
)

Loss = Callable[[Any, Any], Tensor]
NAN = float("nan")


@dataclass(frozen=True)
class ReciprocalOptions:
    """What the papers leave open or others do differently; the defaults are the published method.

    Attributes:
        feedback: ``gradient``: h = η⟨g_u, g_l⟩, exact for plain SGD and small steps; ``finite_difference``: h =
            R(θ_S) - R(θ_S'), which sees the step that was really taken (momentum, Adam) and saves a backward pass.
        pseudo_labels: ``argmax``, as published, or ``sample``, with which the feedback is unbiased.
        feedback_scale: Factor on h in the teacher's loss; the number of voxels in x_u would make the voxel mean of
            step 4 the joint log-likelihood of theory.
        feedback_baseline: Momentum of a moving average that is subtracted from h, as in Meta Pseudo Labels; 0: none.
        student_noise: Standard deviation of Gaussian noise on the student's unlabelled images (which are z-scored); the
            teacher labels them without. 0: none.
    """

    feedback: Literal["gradient", "finite_difference"] = "gradient"
    pseudo_labels: HowToLabel = "argmax"
    feedback_scale: float = 1.0
    feedback_baseline: float = 0.0
    student_noise: float = 0.0

    def __post_init__(self) -> None:
        if self.feedback_scale < 0:
            raise ValueError(f"feedback_scale={self.feedback_scale}: 0 or more")
        if self.student_noise < 0:
            raise ValueError(f"student_noise={self.student_noise}: 0 or more")
        if not 0 <= self.feedback_baseline < 1:
            raise ValueError(f"feedback_baseline={self.feedback_baseline}: a momentum, 0 or more and below 1")


@dataclass(frozen=True)
class Losses:
    """The losses of an iteration.

    Attributes:
        teacher: L(T(x_l), y_l), of all that the network returns (a list under deep supervision).
        student: R = L(S(x_l), y_l), of the logits at full resolution; ``target`` is the same as the teacher's.
        pseudo: L(S(x_u), ŷ), of the logits at full resolution and labels from
            :func:`~ctnet_nnunet.semi_supervised.labels.pseudo_labels`.
    """

    teacher: Loss
    student: Loss
    pseudo: Loss


class ReciprocalStep:
    """One iteration of reciprocal learning for two networks and their optimisers.

    With DistributedDataParallel around both networks (``find_unused_parameters=True``), all processes compute the h
    and the gradients of one process that has the whole batch, provided that their shares of it are equal.

    Args:
        student, teacher: Networks (B, C, *patch) → logits (B, classes or regions, *patch), or a list with these first.
        student_optimizer, teacher_optimizer: η is the student's learning rate, that of each parameter's own group.
        losses: See :class:`Losses`.
        options: See :class:`ReciprocalOptions`.
        regions: The logits are regions under a sigmoid each.
        clip_norm: Both gradients are clipped to it before the steps; g_u enters h as it was before. None: no clipping.
        autocast: Makes a context for the forward passes, but for those that measure R.
        scaler: For float16; h and all norms are of unscaled gradients.
        generator: Draws sampled labels and noise; None is torch's global one.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        student_optimizer: Optimizer,
        teacher_optimizer: Optimizer,
        losses: Losses,
        options: ReciprocalOptions | None = None,
        *,
        regions: bool = False,
        clip_norm: float | None = None,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        scaler: torch.amp.GradScaler | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        self.student, self.teacher = student, teacher
        self.student_optimizer, self.teacher_optimizer = student_optimizer, teacher_optimizer
        self.losses, self.options = losses, options or ReciprocalOptions()
        self.regions, self.generator = regions, generator
        self.max_norm = math.inf if clip_norm is None else clip_norm
        self.autocast, self.scaler = autocast, scaler
        self.baseline = 0.0

    def __call__(
        self, labelled: Tensor, target: Any, unlabelled: Tensor, measure_feedback: bool = False
    ) -> dict[str, float]:
        """One iteration.

        A gradient or loss that is not finite before the student's step leaves both networks as they were; one behind
        it leaves the teacher as it was. Either way ``loss`` is nan.

        Args:
            labelled: x_l (B_l, C, *patch).
            target: y_l, in whatever form the losses want it.
            unlabelled: x_u (B_u, C, *patch).
            measure_feedback: Also measure ``feedback_share``, at the price of one more backward pass.

        Returns:
            ``loss`` L(T(x_l), y_l); ``loss_student_unlabelled`` L(S(x_u), ŷ) before and ``loss_student_labelled`` R
            behind the student's step; ``h``; ``feedback_share``: norm of the feedback's gradient over that of the
            labels', nan where not measured; ``pseudo_label_share_<c>``: share of x_u's voxels of class or region c.
        """
        with self.autocast():
            prediction = full_resolution(self.teacher(unlabelled))  # its graph is kept for the teacher's step
        labels = pseudo_labels(prediction, self.options.pseudo_labels, self.regions, self.generator)
        shares = label_shares(labels, prediction.shape[1], self.regions)
        outputs = self.nothing(len(shares))
        outputs |= {f"pseudo_label_share_{index}": share for index, share in enumerate(shares)}

        h = self._student_step(labelled, target, unlabelled, labels, outputs)
        if h is None or not self._teacher_step(labelled, target, prediction, labels, h, outputs, measure_feedback):
            self._forget_gradients()
            return {**outputs, "loss": NAN}
        if self.scaler is not None:
            self.scaler.update()
        return outputs

    @staticmethod
    def nothing(channels: int) -> dict[str, float]:
        """What an iteration returns, with nan for everything."""
        names = ("loss", "loss_student_unlabelled", "loss_student_labelled", "h", "feedback_share")
        return dict.fromkeys((*names, *(f"pseudo_label_share_{index}" for index in range(channels))), NAN)

    def _student_step(
        self, labelled: Tensor, target: Any, unlabelled: Tensor, labels: Tensor, outputs: dict[str, float]
    ) -> float | None:
        """Let the student learn from the pseudo-labels; returns h, or None if something was not finite."""
        optimizer = self.student_optimizer
        by_gradient = self.options.feedback == "gradient"
        seed = int(torch.randint(2**31, (1,))) if self._is_noisy() else None
        before = NAN if by_gradient else self._risk(labelled, target, seed)

        optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            loss = self.losses.pseudo(full_resolution(self.student(self._with_noise(unlabelled))), labels)
        outputs["loss_student_unlabelled"] = _mean_over_processes(loss)
        self._backward(loss)
        self._unscale(optimizer)
        # A copy, because clipping works in place; what is None gets no gradient and adds nothing to h.
        g_u = [None if p.grad is None else p.grad.clone() for p in _parameters(optimizer)] if by_gradient else []
        norm = torch.nn.utils.clip_grad_norm_(_parameters(optimizer), self.max_norm)
        if not (math.isfinite(outputs["loss_student_unlabelled"]) and math.isfinite(float(norm))):
            return None
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

        if by_gradient:
            h = self._first_order_drop(g_u, labelled, target, outputs)
        else:
            outputs["loss_student_labelled"] = self._risk(labelled, target, seed)
            h = before - outputs["loss_student_labelled"]
        outputs["h"] = h
        return h if math.isfinite(h) else None

    def _with_noise(self, images: Tensor) -> Tensor:
        deviation = self.options.student_noise
        if deviation == 0:
            return images
        return images + torch.empty_like(images).normal_(0, deviation, generator=self.generator)

    def _first_order_drop(
        self, g_u: list[Tensor | None], labelled: Tensor, target: Any, outputs: dict[str, float]
    ) -> float:
        """η⟨g_u, g_l⟩ with g_l at θ_S'; g_l is not applied."""
        with self.autocast():
            risk = self.losses.student(full_resolution(self.student(labelled)), target)
        outputs["loss_student_labelled"] = _mean_over_processes(risk)
        self._backward(risk)
        g_l = [p.grad for p in _parameters(self.student_optimizer)]
        rates = [group["lr"] for group in self.student_optimizer.param_groups for _ in group["params"]]
        triples = [(r, u, g) for r, u, g in zip(rates, g_u, g_l, strict=True) if u is not None and g is not None]
        products = [rate * torch.dot(u.flatten(), g.flatten()) for rate, u, g in triples]
        self.student_optimizer.zero_grad(set_to_none=True)
        scale = 1.0 if self.scaler is None else self.scaler.get_scale()
        return math.fsum(torch.stack(products).tolist()) / scale if products else 0.0

    @torch.no_grad()
    def _risk(self, labelled: Tensor, target: Any, seed: int | None) -> float:
        """R = L(S(x_l), y_l) of the student as it is now; with a seed under the same dropout each time."""
        devices = [labelled.device] if labelled.device.type == "cuda" else []
        # In float32: the rounding of bf16 would be a good part of the difference of two measurements.
        with torch.random.fork_rng(devices, enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            return _mean_over_processes(self.losses.student(full_resolution(self.student(labelled)), target))

    def _is_noisy(self) -> bool:
        """Whether dropout or stochastic depth could drown the difference of two measurements."""
        return self.options.feedback == "finite_difference" and any(
            "drop" in type(module).__name__.lower() for module in self.student.modules()
        )

    def _teacher_step(
        self,
        labelled: Tensor,
        target: Any,
        prediction: Tensor,
        labels: Tensor,
        h: float,
        outputs: dict[str, float],
        measure: bool,
    ) -> bool:
        """Let the teacher learn from labels and feedback, in one backward pass; returns whether all was finite."""
        optimizer = self.teacher_optimizer
        optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            loss = self.losses.teacher(self.teacher(labelled), target)
            feedback = negative_log_likelihood(prediction, labels, self.regions)
        outputs["loss"] = _mean_over_processes(loss)
        feedback = self.options.feedback_scale * (h - self._updated_baseline(h)) * feedback
        alone = self._gradient_alone(feedback) if measure else None
        self._backward(loss + feedback)
        self._unscale(optimizer)
        if alone is not None:
            outputs["feedback_share"] = self._share(alone)
        norm = torch.nn.utils.clip_grad_norm_(_parameters(optimizer), self.max_norm)
        if not (math.isfinite(outputs["loss"]) and math.isfinite(float(norm))):
            return False
        optimizer.step()
        return True

    def _updated_baseline(self, h: float) -> float:
        """The moving average of h before this iteration."""
        before, momentum = self.baseline, self.options.feedback_baseline
        if momentum:
            self.baseline = momentum * before + (1 - momentum) * h
        return before

    def _gradient_alone(self, feedback: Tensor) -> list[Tensor | None]:
        scaled = feedback if self.scaler is None else self.scaler.scale(feedback)
        scale = 1.0 if self.scaler is None else self.scaler.get_scale()
        parameters = _parameters(self.teacher_optimizer)
        gradients = torch.autograd.grad(scaled, parameters, retain_graph=True, allow_unused=True)
        return [None if g is None else averaged(g) / scale for g in gradients]

    def _share(self, alone: list[Tensor | None]) -> float:
        """‖G_feedback‖ / ‖G_labels‖, the latter as the difference of the whole and the former."""
        pairs = zip(_parameters(self.teacher_optimizer), alone, strict=True)
        of_labels = [p.grad if g is None else p.grad - g for p, g in pairs if p.grad is not None]
        norm = torch.nn.utils.get_total_norm
        return float(norm([g for g in alone if g is not None])) / max(float(norm(of_labels)), 1e-30)

    def _backward(self, loss: Tensor) -> None:
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()  # type: ignore[no-untyped-call]

    def _unscale(self, optimizer: Optimizer) -> None:
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)

    def _forget_gradients(self) -> None:
        """Behind an iteration that was cut off; a scale that may have been too large is lowered."""
        self.student_optimizer.zero_grad(set_to_none=True)
        self.teacher_optimizer.zero_grad(set_to_none=True)
        if self.scaler is not None:
            self.scaler.update(self.scaler.get_scale() * self.scaler.get_backoff_factor())

    def state_dict(self) -> dict[str, float]:
        """What must be kept beside the networks and optimisers to go on."""
        return {"baseline": self.baseline}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore :meth:`state_dict`."""
        self.baseline = float(state["baseline"])


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _mean_over_processes(loss: Tensor) -> float:
    return float(averaged(loss))
