"""From the arguments to a trained and validated fold, like stock's ``run_training``, in one process or in many."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path

import torch
from nnunetv2.run import run_training as stock
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from torch.backends import cudnn

from ctnet_nnunet import ranks
from ctnet_nnunet.errors import SetupError
from ctnet_nnunet.nnunet_version import require_supported_nnunet
from ctnet_nnunet.shim_path import trainer_names
from ctnet_nnunet.train.arguments import Arguments
from ctnet_nnunet.train.fold import Fold
from ctnet_nnunet.train.going_on import load
from ctnet_nnunet.train.group import Launch, process_group
from ctnet_nnunet.train.step_cost import measure_step, results_elsewhere
from ctnet_nnunet.trainers import stock_hooks
from ctnet_nnunet.trainers.preemption import STOPPED_STATUS, StopSignals
from ctnet_nnunet.trainers.resilient import ResilientTrainer
from ctnet_nnunet.trainers.several_processes import SeveralProcesses
from ctnet_nnunet.trainers.user_errors import reports_user_errors

LOST_PEER = ("closed by peer", "reset by peer", "Broken pipe", "remote process exited", "ncclRemoteError")


def train(arguments: Arguments) -> None:
    """Train and validate; ends the process with status 2 on a user's error, 75 on SIGTERM or SIGUSR1."""
    try:
        _train(arguments)
    except RuntimeError as error:
        if not (ranks.in_group() and any(words in str(error) for words in LOST_PEER)):
            raise
        reason = str(error).splitlines()[0]
        print(
            f"ctnet: rank {ranks.rank()}: another rank has ended ({reason}); what it said stands above", file=sys.stderr
        )
        raise SystemExit(1) from None


@reports_user_errors
def _train(arguments: Arguments) -> None:
    require_supported_nnunet()
    launch, device = Launch.from_environment(), torch.device(arguments.device)
    if arguments.num_gpus > 1:
        _let_stock_start_them(arguments, launch, device)
        return
    with ExitStack() as stack:
        device = stack.enter_context(process_group(launch, device))
        stock_hooks.install()
        trainer_class = _trainer_class(arguments.trainer)
        if issubclass(trainer_class, ResilientTrainer):
            stack.enter_context(StopSignals(_stop_at_once))
        _train_one(trainer_class, arguments, launch, device)


def _train_one(
    trainer_class: type[SeveralProcesses], arguments: Arguments, launch: Launch, device: torch.device
) -> None:
    fold = Fold(arguments)
    ahead = fold.check_agreement() if launch.world > 1 else 0.0
    if arguments.measure_steps is not None:
        with results_elsewhere():
            trainer = _constructed(fold, trainer_class, arguments, launch, device)
            out = None if arguments.measure_out is None else Path(arguments.measure_out).absolute()
            measure_step(trainer, arguments.measure_steps, out)
        return
    trainer = _constructed(fold, trainer_class, arguments, launch, device)
    load(trainer, arguments, launch, ahead)
    if torch.cuda.is_available():
        cudnn.deterministic, cudnn.benchmark = False, True
    if not arguments.validate_only:
        trainer.run_training()
    if arguments.validate_best:
        trainer.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_best.pth"))
    trainer.perform_actual_validation(arguments.npz)


def _constructed(
    fold: Fold, trainer_class: type[SeveralProcesses], arguments: Arguments, launch: Launch, device: torch.device
) -> SeveralProcesses:
    trainer = fold.trainer(trainer_class, device)
    trainer.batch_per_rank = arguments.batch_per_rank
    trainer.disable_checkpointing = arguments.disable_checkpointing
    if launch.world > 1:
        fold.settle_splits(trainer, launch)
    return trainer


def _let_stock_start_them(arguments: Arguments, launch: Launch, device: torch.device) -> None:
    if launch.world > 1 or arguments.batch_per_rank is not None:
        raise SetupError(
            "-num_gpus: under torchrun, and with --batch-per-rank, give torchrun's --nproc-per-node instead"
        )
    stock.run_training(
        arguments.dataset, arguments.configuration, arguments.fold, arguments.trainer, arguments.plans,
        arguments.pretrained_weights, arguments.num_gpus, arguments.npz, arguments.go_on, arguments.validate_only,
        arguments.disable_checkpointing, arguments.validate_best, device=device,
    )  # fmt: skip


def _stop_at_once(name: str) -> None:
    print(f"stopped by {name} before the first step or behind the last; nothing is lost, start again", flush=True)
    raise SystemExit(STOPPED_STATUS)


def _trainer_class(name: str) -> type[SeveralProcesses]:
    """The trainer, which several processes may run; a class of others keeps its name, which its folder has."""
    try:
        found = recursive_find_trainer_class_by_name(name)
    except RuntimeError:
        raise SetupError(f"-tr {name}: no such trainer; ours are {', '.join(trainer_names())}") from None
    if issubclass(found, SeveralProcesses):
        return found  # type: ignore[no-any-return]
    return type(found.__name__, (SeveralProcesses, found), {"__module__": found.__module__, "__doc__": found.__doc__})
