"""The arguments of nnUNetv2_train, and three of our own."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn


@dataclass(frozen=True)
class Arguments:
    """What nnUNetv2_train is told; ``batch_per_rank``, ``measure_steps`` and ``measure_out`` are ours."""

    dataset: str
    configuration: str
    fold: int | str
    trainer: str
    plans: str
    pretrained_weights: str | None
    num_gpus: int
    npz: bool
    go_on: bool
    validate_only: bool
    validate_best: bool
    disable_checkpointing: bool
    device: str
    batch_per_rank: int | None
    measure_steps: int | None
    measure_out: str | None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, from one process."""
        self.exit(2, "" if os.environ.get("RANK", "0") != "0" else f"ctnet: error: {message}; see --help\n")


def parse_arguments(words: Sequence[str] | None = None) -> Arguments:
    """Parse the command line; ends with one line and exit status 2 where it makes no sense."""
    parser = _Parser(prog="python -m ctnet_nnunet.train", description=__doc__)
    parser.add_argument("dataset", metavar="dataset_name_or_id")
    parser.add_argument("configuration")
    parser.add_argument("fold", type=_fold, help="a number, or all")
    parser.add_argument("-tr", dest="trainer", default="nnUNetTrainer", help="trainer, of ours or nnU-Net's own")
    parser.add_argument("-p", dest="plans", default="nnUNetPlans", help="plans identifier")
    parser.add_argument("-pretrained_weights", help="checkpoint to start from; not with --c")
    parser.add_argument("-num_gpus", type=int, default=1, help="processes of stock nnU-Net's own; not under torchrun")
    parser.add_argument("--npz", action="store_true", help="save the final validation's probabilities, too")
    parser.add_argument("--c", dest="go_on", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--val", dest="validate_only", action="store_true", help="the final validation alone")
    parser.add_argument("--val_best", dest="validate_best", action="store_true", help="validate checkpoint_best.pth")
    parser.add_argument("--disable_checkpointing", action="store_true")
    parser.add_argument("-device", choices=("cuda", "cpu", "mps"), default="cuda")
    parser.add_argument(
        "--batch-per-rank", type=_positive, metavar="N",
        help="samples of each process; without it the plan's batch is divided among them",
    )  # fmt: skip
    parser.add_argument(
        "--measure-steps", type=_positive, metavar="N",
        help="take N training steps, say what one costs, and end: nothing is trained or kept",
    )  # fmt: skip
    parser.add_argument("--measure-out", metavar="FILE", help="with --measure-steps: also as JSON")
    found = Arguments(**vars(parser.parse_args(words)))
    if found.measure_steps is None and found.measure_out is not None:
        parser.error("--measure-out wants --measure-steps")
    if found.measure_steps is not None and (found.go_on or found.validate_only or found.num_gpus > 1):
        parser.error("--measure-steps: not with --c, --val or -num_gpus")
    if found.go_on and found.validate_only:
        parser.error("--c and --val exclude each other")
    if found.go_on and found.pretrained_weights:
        parser.error("--c and -pretrained_weights exclude each other: pretrained weights are for a beginning")
    if found.validate_best and found.disable_checkpointing:
        parser.error("--val_best and --disable_checkpointing exclude each other")
    return found


def _fold(word: str) -> int | str:
    if word == "all":
        return word
    try:
        return int(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word!r} is neither a number nor all") from None


def _positive(word: str) -> int:
    if not word.isdigit() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word!r} is not a whole number, 1 or more")
    return int(word)
