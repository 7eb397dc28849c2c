"""Jobs for SLURM through submitit: checked before anything is submitted, then submitted one by one or as an array."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ctnet_nnunet.cluster.job import Job, StepWork, Work
from ctnet_nnunet.cluster.options import SlurmOptions, parse_minutes
from ctnet_nnunet.cluster.step import Step
from ctnet_nnunet.errors import SetupError

JOBS = "jobs"
MOST_STARTS = 1000
"""How often submitit may put a job back; a job that makes no progress stops itself long before."""
EXIT_MARGIN = 30
"""Seconds between the end of a command's patience and the end of its wall time."""
SECONDS = 60


def require_slurm(options: SlurmOptions) -> None:
    """Ask SLURM whether it would take such jobs; nothing is submitted.

    Raises:
        SetupError: submitit or sbatch is missing, or SLURM refuses: its own words.
    """
    try:
        import submitit  # noqa: F401
    except ImportError:
        raise SetupError("--engine slurm needs submitit: pip install 'ctnet_nnunet[cluster]'") from None
    if missing := [name for name in ("sbatch", "srun") if shutil.which(name) is None]:
        raise SetupError(f"--engine slurm: no {missing[0]} on PATH; run it on a login node, or use --engine local")
    words = ["sbatch", "--test-only", f"--time={options.minutes}", f"--cpus-per-task={options.cpus}"]
    if options.gpus:
        words.append(f"--gpus-per-node={options.gpus}")
    for key, value in options.parameters.items():
        option = f"--{key.replace('_', '-')}"
        words.append(option if value is True else f"{option}={value}")
    try:
        asked = subprocess.run(
            [*words, "--wrap=true"], capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        raise SetupError(f"sbatch did not answer within {SECONDS} s; see sinfo, and try again") from None
    if asked.returncode != 0:
        raise SetupError(f"SLURM refuses such jobs: {_refusal(asked.stderr)}{_correction(options)}")
    _refuse_endless_wait(options)


def submit(works: Sequence[Work], title: str, folder: Path, options: SlurmOptions, dependency: str = "") -> list[str]:
    """Submit works as one job, or several as one array; returns their numbers, ``12`` or ``12_0``, ``12_1``, ….

    Args:
        title: The job's name.
        folder: The chain's.
        dependency: As sbatch takes it.

    Raises:
        SetupError: SLURM refuses.
    """
    from submitit.core.utils import FailedJobError, FailedSubmissionError
    from submitit.slurm.slurm import SlurmExecutor

    executor = SlurmExecutor(folder / JOBS, max_num_timeout=MOST_STARTS)
    executor.update_parameters(**_parameters(title, options, dependency))
    patience = max(10.0, float(options.warning_seconds - EXIT_MARGIN))
    try:
        with executor.batch():
            jobs = [executor.submit(Job(work, folder, patience)) for work in works]
        return [str(job.job_id) for job in jobs]
    except (FailedJobError, FailedSubmissionError) as error:
        raise SetupError(f"SLURM refused {title}: {_refusal(str(error))}") from None
    except OSError as error:
        raise SetupError(f"{folder / JOBS}: could not be written ({error.strerror}); free disk space") from None


def _parameters(title: str, options: SlurmOptions, dependency: str) -> dict[str, Any]:
    return {
        "job_name": title,
        "time": options.minutes,
        "cpus_per_task": options.cpus,
        "signal_delay_s": options.warning_seconds,
        "stderr_to_stdout": True,
        # srun no longer takes the batch job's number of cores over by itself.
        "setup": ['export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"'],
        **({"gpus_per_node": options.gpus} if options.gpus else {}),
        **({"dependency": dependency} if dependency else {}),
        "additional_parameters": {"requeue": True, "kill-on-invalid-dep": "yes", **options.parameters},
    }


def cancel(jobs: Iterable[str]) -> str:
    """End jobs, those that are over are left alone; returns what is left to do where SLURM does not answer."""
    words = ["scancel", *sorted(set(jobs))]
    if len(words) == 1:
        return ""
    try:
        subprocess.run(words, capture_output=True, timeout=SECONDS, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return f"scancel did not answer; end the jobs that are submitted already: {' '.join(words)}"
    return ""


def job_log(folder: Path, job: str) -> Path:
    """What SLURM and submitit say about a job, and what it printed itself."""
    return folder / JOBS / f"{job}_0_log.out"


def step_works(steps: Sequence[Step]) -> list[Work]:
    """Steps as the work of jobs."""
    return [StepWork(step) for step in steps]


def _refusal(text: str) -> str:
    """The last of sbatch's lines, without what they begin with."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = [line for line in lines if line.startswith(("sbatch:", "allocation failure:"))] or lines
    return re.sub("^(sbatch: |error: |allocation failure: )+", "", (said or ["no reason given"])[-1])


def _correction(options: SlurmOptions) -> str:
    """The partitions that there are, where one was named."""
    if "partition" not in options.parameters:
        return "; correct --time or --slurm"
    names = ", ".join(name.rstrip("*") for name in _time_limits()) or "none"
    return f"; correct --slurm partition={options.parameters['partition']} (there are {names})"


def _refuse_endless_wait(options: SlurmOptions) -> None:
    """Some sites take jobs that are longer than their partition allows, and let them wait for ever."""
    limits = _time_limits()
    named = str(options.parameters.get("partition", "")).split(",")
    chosen = {name: limits[name] for name in named if name in limits} or {
        name: limit for name, limit in limits.items() if name.endswith("*")
    }
    if chosen and all(limit is not None and limit < options.minutes for limit in chosen.values()):
        name, limit = next(iter(chosen.items()))
        raise SetupError(f"--time: {options.minutes} minutes are more than the {limit} of partition {name.rstrip('*')}")


def _time_limits() -> dict[str, int | None]:
    """Partition → its longest job in minutes, None without a limit; the default's name ends in ``*``."""
    words = ["sinfo", "--noheader", "--format=%P|%l"]
    try:
        asked = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return {}  # sbatch has said what it thinks of the jobs
    rows = [line.strip().split("|") for line in asked.stdout.splitlines() if line.count("|") == 1]
    return {name: parse_minutes(limit) if limit[0].isdigit() else None for name, limit in rows}
