"""AdamW's parameter groups and the learning rate over epochs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from ctnet_nnunet.planning.options import Schedule

NOT_DECAYED = ("position_table", "mask_token")
DECODER = "decoder"
"""nnU-Net's name for the half of its networks behind the encoder."""


def adamw(
    modules: Iterable[nn.Module],
    schedule: Schedule,
    betas: tuple[float, float] = (0.9, 0.999),
    encoder_rate: float = 1.0,
) -> AdamW:
    """AdamW over the trainable parameters; norms, biases, position and mask tokens are not decayed.

    Args:
        modules: Whose parameters are trained.
        schedule: Learning rate and weight decay.
        betas: Of AdamW.
        encoder_rate: Factor on the learning rate of all but the decoder: each group's ``rate``, which the schedulers
            multiply with.
    """
    groups: dict[tuple[bool, bool], dict[int, nn.Parameter]] = {}
    for module in modules:
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                decayed = parameter.ndim > 1 and not name.endswith(NOT_DECAYED)
                slower = encoder_rate != 1 and _is_before_decoder(name)
                groups.setdefault((slower, decayed), {})[id(parameter)] = parameter
    return AdamW(
        [
            {
                "params": list(parameters.values()),
                "lr": schedule.learning_rate * (encoder_rate if slower else 1.0),
                "rate": encoder_rate if slower else 1.0,
                "weight_decay": schedule.weight_decay if decayed else 0.0,
            }
            for (slower, decayed), parameters in sorted(groups.items(), key=lambda item: item[0], reverse=True)
        ],
        lr=schedule.learning_rate,
        betas=betas,
    )


def _is_before_decoder(name: str) -> bool:
    return DECODER not in name.split(".")


def encoder_rate_of(groups: Iterable[Mapping[str, Any]]) -> float:
    """The factor that an optimiser's groups, or those of its state in a checkpoint, were made with."""
    return min(float(group.get("rate", 1.0)) for group in groups)


def optimizer_misfit(optimizer: Optimizer, state: Mapping[str, Any]) -> str | None:
    """How the optimiser of a checkpoint was set differently, in words behind "was"; None if it goes on in this one.

    torch compares the sizes of the groups alone, and takes the rest from the checkpoint.

    Args:
        optimizer: Of the training that would go on.
        state: State dict of the other one.
    """
    then, now = state["param_groups"], optimizer.param_groups
    if encoder_rate_of(then) != encoder_rate_of(now):
        return f"trained with encoder_rate {encoder_rate_of(then):g}, the plan now has {encoder_rate_of(now):g}"
    if _rule(then) != _rule(now):
        return f"trained with {_rule(then)}, the plan now has {_rule(now)}"
    if [len(group["params"]) for group in then] != [len(group["params"]) for group in now]:
        return "trained with other groups of parameters"
    return None


def _rule(groups: Sequence[Mapping[str, Any]]) -> str:
    first, decay = groups[0], max(float(group["weight_decay"]) for group in groups)
    if "betas" in first:
        return f"Adam (betas {', '.join(f'{beta:g}' for beta in first['betas'])}, weight_decay {decay:g})"
    return f"SGD (momentum {first['momentum']:g}, weight_decay {decay:g})"


def sgd(module: nn.Module, schedule: Schedule, momentum: float, encoder_rate: float = 1.0) -> SGD:
    """SGD over the trainable parameters, all of them decayed; ``encoder_rate`` as for :func:`adamw`."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(encoder_rate if _is_before_decoder(name) else 1.0, []).append(parameter)
    return SGD(
        [
            {"params": parameters, "lr": schedule.learning_rate * rate, "rate": rate}
            for rate, parameters in groups.items()
        ],
        momentum=momentum,
        weight_decay=schedule.weight_decay,
    )


class WarmupPolyScheduler(PolyLRScheduler):  # type: ignore[misc]
    """Linear warm-up, then nnU-Net's polynomial decay over the epochs that are left."""

    def __init__(self, optimizer: Optimizer, initial_lr: float, epochs: int, warmup_epochs: float) -> None:
        self.warmup_epochs = min(warmup_epochs, epochs - 1)
        super().__init__(optimizer, initial_lr, epochs)

    def step(self, current_step: int | None = None) -> None:
        """Set the rate of epoch ``current_step``, counted from 0."""
        if current_step is None or current_step == -1:
            current_step = self.ctr
            self.ctr += 1
        if current_step < self.warmup_epochs:
            rate = self.initial_lr * (current_step + 1) / (self.warmup_epochs + 1)
        else:
            done = (current_step - self.warmup_epochs) / (self.max_steps - self.warmup_epochs)
            rate = self.initial_lr * (1 - done) ** self.exponent
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("rate", 1.0)
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]


class ConstantScheduler(PolyLRScheduler):  # type: ignore[misc]
    """Linear warm-up, then one rate to the end.

    Args:
        optimizers: All get the same rate.
    """

    def __init__(self, optimizers: Sequence[Optimizer], rate: float, warmup_epochs: float) -> None:
        self.optimizers, self.warmup_epochs = list(optimizers), warmup_epochs
        super().__init__(self.optimizers[0], rate, max_steps=1)

    def step(self, current_step: int | None = None) -> None:
        """Set the rate of epoch ``current_step``, counted from 0."""
        if current_step is None or current_step == -1:
            current_step = self.ctr
            self.ctr += 1
        rate = self.initial_lr * min(1.0, (current_step + 1) / (self.warmup_epochs + 1))
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]


def constant_adam(module: nn.Module, schedule: Schedule) -> tuple[Adam, ConstantScheduler]:
    """Adam over all parameters at one rate behind the warm-up."""
    optimizer = Adam(module.parameters(), lr=schedule.learning_rate, weight_decay=schedule.weight_decay)
    return optimizer, ConstantScheduler([optimizer], schedule.learning_rate, schedule.warmup_epochs or 0)


class TenfoldScheduler(PolyLRScheduler):  # type: ignore[misc]
    """A rate that falls tenfold at 5/12 and 10/12 of the epochs: every 2500 of 6000 iterations, as RLSSS does."""

    def step(self, current_step: int | None = None) -> None:
        """Set the rate of epoch ``current_step``, counted from 0."""
        if current_step is None or current_step == -1:
            current_step = self.ctr
            self.ctr += 1
        falls = 12 * current_step // (5 * self.max_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = self.initial_lr * 0.1**falls * group.get("rate", 1.0)
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]


class PhasedScheduler:
    """Schedules of one optimiser that follow each other; each counts its epochs from 0.

    Args:
        phases: First epoch of each phase, rising from 0, and its schedule.
    """

    def __init__(self, phases: Sequence[tuple[int, PolyLRScheduler]]) -> None:
        self.phases = list(phases)

    def step(self, epoch: int) -> None:
        """Set the rate of an epoch, counted from 0."""
        start, scheduler = [phase for phase in self.phases if phase[0] <= epoch][-1]
        scheduler.step(epoch - start)
