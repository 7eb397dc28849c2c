"""What every trainer of ours shares: options from the plan, bf16, AdamW, and a training that survives.

A killed run resumes from an intact checkpoint not older than ``save_minutes``, in the middle of an epoch if need be,
with optimiser, schedule and random generators; non-finite losses are skipped, counted and end the run when they
persist; ``--c`` without a checkpoint is an error; a new training sets an old one's checkpoints aside; SIGTERM and
SIGUSR1 end it with exit status 75 and a checkpoint of the iteration that was running.
"""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from ctnet_nnunet import ranks
from ctnet_nnunet.checkpoints import random_state, remove_partial
from ctnet_nnunet.cores import compute_threads
from ctnet_nnunet.errors import DataError, PlanError, SetupError, TrainingError
from ctnet_nnunet.planning.options import Mode, read_options
from ctnet_nnunet.precision import autocast, bfloat16_supported
from ctnet_nnunet.trainers import stock_hooks
from ctnet_nnunet.trainers.checkpointing import CheckpointingTrainer
from ctnet_nnunet.trainers.ignored_voxels import count_over_ranks
from ctnet_nnunet.trainers.preemption import STOPPED_STATUS, StopSignals
from ctnet_nnunet.trainers.progress import TrainingProgress, readable
from ctnet_nnunet.trainers.schedule import WarmupPolyScheduler, adamw
from ctnet_nnunet.trainers.tensorboard import ScalarWriter
from ctnet_nnunet.trainers.user_errors import reports_user_errors

PLOT_SECONDS = 60.0


class ResilientTrainer(CheckpointingTrainer):
    """Base of the trainers; subclasses set ``mode`` and the hooks of their training."""

    mode: ClassVar[Mode] = "supervised"
    betas: ClassVar[tuple[float, float]] = (0.9, 0.999)
    clip_norm: ClassVar[float] = 12.0
    non_finite_limit: ClassVar[int] = 25
    _frozen = False
    """Whether all but the decoder stays as it starts."""

    @reports_user_errors
    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008  (the base class's signature, verbatim)
    ) -> None:
        stock_hooks.install()
        if configuration not in plans["configurations"]:
            there = ", ".join(plans["configurations"])
            raise PlanError(f"plans {plans['plans_name']}: no configuration {configuration!r}; it has {there}")
        if device.type == "cuda" and not torch.cuda.is_available():
            raise SetupError("-device cuda: torch sees no GPU here; run with -device cpu, or see `ctnet doctor`")
        if device.type == "cpu" and not ranks.in_group():
            # Stock's command starts a thread a core of the machine, also where this process may use few of them.
            torch.set_num_threads(compute_threads())
        # Stock takes this key out of the plans; only its command puts it in.
        self.resuming = bool(plans.setdefault("continue_training", False))
        super().__init__(plans, configuration, fold, dataset_json, device)
        block = self.configuration_manager.configuration.get("ctnet")
        self.options = read_options(block, f"plans {plans['plans_name']}")
        self.schedule = self.options.schedule(self.mode)
        self._apply_schedule()
        self.save_every = 10**9  # ours go by the clock
        self._plot_now = self.logger.plot_progress_png
        self.logger.plot_progress_png = self._plot_sometimes
        self._plotted_at, self._saved_at = time.monotonic(), float("-inf")
        self._epoch_outputs: list[dict[str, Any]] = []
        self._non_finite_total = self._non_finite_in_a_row = 0
        if device.type == "cuda" and bfloat16_supported(self.device):
            self.grad_scaler = None  # bf16 has float32's range

    def _apply_schedule(self) -> None:
        self.initial_lr = self.schedule.learning_rate
        self.weight_decay = self.schedule.weight_decay
        self.num_epochs = self.schedule.epochs
        self.num_iterations_per_epoch = self.schedule.iterations
        self.num_val_iterations_per_epoch = self.schedule.val_iterations
        if self.schedule.batch_size is not None:
            self.configuration_manager.configuration["batch_size"] = self.schedule.batch_size

    @reports_user_errors
    def initialize(self) -> None:
        self.refuse_impossible_resume()
        self._require_preprocessed()
        self.seed_everything()
        super().initialize()

    def seed_everything(self, steps: int = 0) -> None:
        """Seed the global generators; folds and ranks differ, so that an ensemble's members and a step's patches do."""
        fold_number = self.fold if isinstance(self.fold, int) else 999
        seed = self.schedule.seed + 1000 * fold_number + self.local_rank + 1_000_003 * steps
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)

    def _require_preprocessed(self) -> None:
        if self.preprocessed_dataset_folder is None:
            raise SetupError("nnUNet_preprocessed is not set; export it (`ctnet doctor` shows all three folders)")
        folder = Path(self.preprocessed_dataset_folder)
        if not any(folder.glob("*.b2nd")) and not any(folder.glob("*.npz")):
            number = int(self.plans_manager.dataset_name[7:10])
            raise DataError(
                f"{folder}: no preprocessed cases; run nnUNetv2_preprocess -d {number} "
                f"-plans_name {self.plans_manager.plans_name} -c {self.configuration_name}"
            )

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, WarmupPolyScheduler]:
        rate = self.announced_encoder_rate() if self.mode == "supervised" else 1.0
        optimizer = adamw(self._optimised_modules(), self.schedule, self.betas, rate)
        return optimizer, WarmupPolyScheduler(
            optimizer, self.schedule.learning_rate, self.schedule.epochs, self.schedule.warmup_epochs or 0
        )

    @property
    def pretrained_from(self) -> str | None:
        """The file that -pretrained_weights named."""
        file: str | None = getattr(stock_hooks.unwrapped(self.network), "pretrained_from", None)
        return file

    def announced_encoder_rate(self) -> float:
        """Option ``encoder_rate``; if it is not 1, the log says what it does."""
        rate = self.options.encoder_rate
        if rate != 1:
            how = f"learns at {rate:g} of the learning rate" if rate else "is frozen"
            self.print_to_log_file(f"all but the decoder {how} (encoder_rate)")
        self._frozen = rate == 0
        return rate

    def _refuse_frozen_random_encoder(self) -> None:
        if not self._frozen or self.resuming:
            return
        if self.is_cascaded:
            raise PlanError(
                f"ctnet option encoder_rate=0: {self.configuration_name} is a cascade's second stage, whose encoder "
                "must learn to read the first one's labels; raise encoder_rate"
            )
        if self.pretrained_from is None:
            raise PlanError(
                "ctnet option encoder_rate=0 freezes all but the decoder, and no -pretrained_weights FILE was given, "
                "so it would stay random; give it, or raise encoder_rate"
            )

    def _optimised_modules(self) -> list[nn.Module]:
        return [self.network]

    def autocast(self) -> torch.autocast:
        """bf16 where the device has it (fp16 on older GPUs), unless the plan turns it off."""
        return autocast(self.device, self.options.mixed_precision)

    def optimise(self, loss: Tensor, optimizer: torch.optim.Optimizer | None = None) -> float:
        """One optimiser step; a non-finite loss or gradient is skipped and counted. Returns the loss, nan if skipped.

        Args:
            loss: A scalar.
            optimizer: None is the trainer's own.

        Raises:
            TrainingError: If it happens too often in a row.
        """
        optimizer = self.optimizer if optimizer is None else optimizer
        loss = loss * self.batch_share if self.batch_share != 1 else loss
        value = float(loss.detach())
        finite = self._agree(np.isfinite(value))
        if finite:
            finite = self._backward_and_step(loss, optimizer)
        if not finite:
            optimizer.zero_grad(set_to_none=True)
        self.count_step(finite)
        return value if finite else float("nan")

    def count_step(self, finite: bool) -> None:
        """Count a step that was skipped because something was not finite.

        Raises:
            TrainingError: If it happens too often in a row.
        """
        if finite:
            self._non_finite_in_a_row = 0
            return
        self._non_finite_total += 1
        self._non_finite_in_a_row += 1
        if self._non_finite_in_a_row >= self.non_finite_limit:
            raise TrainingError(
                f"{self.output_folder}: loss not finite {self._non_finite_in_a_row} times in a row in epoch "
                f"{self.current_epoch}; lower learning_rate (ctnet plan --set), or set mixed_precision=false; the "
                "last checkpoint is intact"
            )

    def _backward_and_step(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> bool:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if self.grad_scaler is not None:
            self.grad_scaler.scale(loss).backward()
            self.grad_scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(parameters, self.clip_norm)
            self.grad_scaler.step(optimizer)  # skips by itself when a gradient overflowed
            self.grad_scaler.update()
            return True
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.clip_norm)
        if not torch.isfinite(norm):
            return False
        optimizer.step()
        return True

    def _agree(self, finite: bool) -> bool:
        """Under DDP all ranks skip when one must, else their collectives would no longer match."""
        if not self.is_ddp:
            return bool(finite)
        flag = torch.tensor(float(finite), device=self.device)
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MIN)
        return bool(flag.item() > 0)

    def _build_loss(self) -> nn.Module:
        loss: nn.Module = super()._build_loss()
        if self.is_ddp and self.label_manager.has_ignore_label:
            count_over_ranks(loss, self.label_manager)
        return loss

    @reports_user_errors
    def run_training(self) -> None:
        """Stock's loop, with progress, checkpoints by the clock and a start in the middle of an epoch.

        Raises:
            SystemExit: With status 75, behind a checkpoint, when SIGTERM or SIGUSR1 asked to stop.
        """
        with StopSignals() as self.stop_signals:
            self._train_to_the_end()
        if name := self.stop_signals.agreed(self.device if self.is_ddp else None):
            self._stop_before_validation(name)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        with StopSignals(self._stop_before_validation):
            super().perform_actual_validation(save_probabilities)

    def _train_to_the_end(self) -> None:
        self._refuse_frozen_random_encoder()
        if self.local_rank == 0:
            remove_partial(Path(self.output_folder))
        self._set_old_training_aside()
        self.on_train_start()
        if not self.resuming:
            self.save_checkpoint(str(Path(self.output_folder) / "checkpoint_latest.pth"))
        done = self.current_epoch * self.num_iterations_per_epoch + len(self._epoch_outputs)
        total = self.num_epochs * self.num_iterations_per_epoch
        label = f"{self.__class__.__name__} fold {self.fold}"
        costs = self.costs_of_epochs()
        with TrainingProgress(label, total, done, self.local_rank == 0, costs) as progress:
            self.progress = progress
            for _ in range(self.current_epoch, self.num_epochs):
                self._run_epoch(progress)
        self.on_train_end()

    @staticmethod
    def planned_costs(options: Any, epochs: int) -> list[float]:
        """What an iteration of each epoch of a new training takes, relative to the others.

        Args:
            options: The plan's ``ctnet`` block as it was read.
            epochs: Of the training.
        """
        return [1.0] * epochs

    def costs_of_epochs(self) -> list[float]:
        """The same of this training, for the remaining time."""
        return self.planned_costs(self.options, self.num_epochs)

    def _run_epoch(self, progress: TrainingProgress) -> None:
        self.on_epoch_start()
        self.on_train_epoch_start()
        while len(self._epoch_outputs) < self.num_iterations_per_epoch:
            self._stop_if_asked()
            output = self.train_step(self._next(self.dataloader_train))
            self._epoch_outputs.append(output)
            progress.update(self.current_epoch, self.num_epochs, float(output["loss"]))
            self._save_by_the_clock()
        self.on_train_epoch_end(self._epoch_outputs)
        self._random_state = random_state()
        with torch.no_grad():
            self.on_validation_epoch_start()
            validation = []
            for _ in range(self.num_val_iterations_per_epoch):
                self._stop_if_asked()
                validation.append(self.validation_step(self._next(self.dataloader_val)))
            self.on_validation_epoch_end(validation)
        self._random_state = None
        self._epoch_outputs = []
        self.on_epoch_end()

    def _next(self, loader: Any) -> Any:
        """A batch. A signal to the whole job has ended the processes that load data, too: that is no error then."""
        try:
            return next(loader)
        except RuntimeError:
            if name := self.stop_signals.agreed(None):
                self._stop(name)
            raise

    def _stop_if_asked(self) -> None:
        """Between two iterations: when any process was asked to stop, all of them do."""
        if name := self.stop_signals.agreed(self.device if self.is_ddp else None):
            self._stop(name)

    def _stop(self, name: str) -> NoReturn:
        self.save_checkpoint(str(Path(self.output_folder) / "checkpoint_latest.pth"))
        remedy = "nothing was saved" if self.disable_checkpointing else "go on with --c"
        self.print_to_log_file(
            f"stopped by {name} after iteration {len(self._epoch_outputs)} of {self.num_iterations_per_epoch} of epoch "
            f"{self.current_epoch}; {remedy}"
        )
        # Ended by the interpreter's end they would be missed, with a traceback of every thread that waits for them.
        stock_hooks.end_workers(self.dataloader_train, self.dataloader_val)
        raise SystemExit(STOPPED_STATUS)

    def _stop_before_validation(self, name: str) -> NoReturn:
        self.print_to_log_file(f"stopped by {name} when all epochs were done; --c makes the final validation")
        raise SystemExit(STOPPED_STATUS)

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        finite = [output for output in train_outputs if np.isfinite(output["loss"])] or train_outputs
        super().on_train_epoch_end(finite)
        if self._non_finite_total:
            self.print_to_log_file(f"{self._non_finite_total} steps skipped so far: loss or gradient not finite")

    def on_epoch_end(self) -> None:
        epoch = self.current_epoch
        super().on_epoch_end()
        remaining = readable(self.progress.remaining_seconds()) if hasattr(self, "progress") else "?"
        self.print_to_log_file(f"epoch {epoch + 1}/{self.num_epochs} done, {remaining} left")
        if self.local_rank == 0:
            self._scalars().write(self.epoch_scalars(), epoch)
        self._save_by_the_clock()

    def epoch_scalars(self) -> dict[str, float]:
        """What TensorBoard shows of the last epoch."""
        names = ("train_losses", "val_losses", "mean_fg_dice", "lrs")
        return {name: float(self.logger.get_value(name, -1)) for name in names}

    def _scalars(self) -> ScalarWriter:
        if not hasattr(self, "_scalar_writer"):
            self._scalar_writer = ScalarWriter(Path(self.output_folder) / "tensorboard")
        return self._scalar_writer

    def _plot_sometimes(self, output_folder: str) -> None:
        """progress.png takes seconds to draw, so not behind every epoch of a minute's training, but behind the last."""
        last = self.current_epoch >= self.num_epochs - 1
        if last or time.monotonic() - self._plotted_at >= PLOT_SECONDS:
            self._plot_now(output_folder)
            self._plotted_at = time.monotonic()
