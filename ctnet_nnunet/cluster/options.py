"""What a user says to SLURM: a wall time, and sbatch's own options."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from ctnet_nnunet.errors import SetupError

ONE_NODE = "a job is one task on one node, which starts the processes of all --gpus-per-job"
OURS = {
    "time": "give --time",
    "job_name": "the steps have names",
    "array": "folds are an array",
    "dependency": "the chain has its own",
    "signal": "the wall-time signal is ours",
    "output": "logs lie in the chain's folder",
    "error": "logs lie in the chain's folder",
    "open_mode": "logs are appended to",
    "gpus_per_node": "give --gpus-per-job",
    "cpus_per_task": "give --cpus-per-job",
    "nodes": ONE_NODE,
    "ntasks": ONE_NODE,
    "ntasks_per_node": ONE_NODE,
    "ntasks_per_gpu": ONE_NODE,
    "ntasks_per_socket": ONE_NODE,
    "requeue": "jobs come back by themselves",
    "no_requeue": "jobs come back by themselves",
    "wrap": "the command is ours",
}
"""Options of sbatch that this program sets itself, with the other way to the same."""
_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<first>\d+)(?::(?P<second>\d+))?(?::(?P<third>\d+))?")


@dataclass(frozen=True)
class SlurmOptions:
    """Attributes:
    minutes: Wall time of a training or a shard.
    gpus: For each such job; 0 asks for none.
    cpus: For each job.
    parameters: Further options of sbatch, in submitit's spelling (``mail_type``); True for one without a value.
    warning_seconds: How long before the wall time's end a job is told.
    """

    minutes: int
    gpus: int
    cpus: int
    parameters: dict[str, str | bool] = field(default_factory=dict)
    warning_seconds: int = 120


def parse_minutes(text: str) -> int:
    """SLURM's spellings: ``90``, ``90:00``, ``24:00:00``, ``2-12``, ``2-12:00:00``; rounded up to whole minutes.

    Raises:
        SetupError: It is none of them, or zero.
    """
    match = _TIME.fullmatch(text.strip())
    if match is None:
        raise SetupError(f"--time {text}: minutes, hours:minutes:seconds or days-hours, for example 24:00:00")
    days, first, second, third = (int(match[name] or 0) for name in ("days", "first", "second", "third"))
    if match["days"] is not None:
        seconds = ((days * 24 + first) * 60 + second) * 60 + third
    elif match["third"] is not None:
        seconds = (first * 60 + second) * 60 + third
    else:
        seconds = first * 60 + second
    if seconds == 0:
        raise SetupError(f"--time {text}: no time at all; for example 24:00:00")
    return math.ceil(seconds / 60)


def parse_parameters(assignments: Sequence[str]) -> dict[str, str | bool]:
    """``partition=gpu``, ``mail-type=END``, ``exclusive`` as sbatch's options.

    Raises:
        SetupError: An option that this program sets itself, or no option.
    """
    chosen: dict[str, str | bool] = {}
    for text in assignments:
        key, equals, value = text.lstrip("-").partition("=")
        name = key.replace("-", "_")
        if not re.fullmatch(r"[a-z][a-z_]*", name) or (equals and not value):
            raise SetupError(f"--slurm {text}: write an option of sbatch as KEY=VALUE, for example partition=gpu")
        if name in OURS:
            raise SetupError(f"--slurm {key}: cannot be set here; {OURS[name]}")
        chosen[name] = value if equals else True
    return chosen
