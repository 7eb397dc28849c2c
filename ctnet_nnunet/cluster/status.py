"""How far a chain is: for each step its state, epoch, remaining time, Dice and, where it failed, why."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ctnet_nnunet.cluster.chain import Chain, read_chain
from ctnet_nnunet.cluster.progress import read_progress, validation_dice
from ctnet_nnunet.cluster.queue import UNKNOWN, JobState, job_states
from ctnet_nnunet.cluster.reason import FORGOTTEN, STATES, TERMINATED, our_line, read_end, reason_of, slurm_state_in
from ctnet_nnunet.cluster.record import Record, log_file, read_record
from ctnet_nnunet.cluster.run_step import working
from ctnet_nnunet.cluster.slurm import job_log
from ctnet_nnunet.cluster.step import TRAININGS, Step, needed

NEVER = "DependencyNeverSatisfied"
_WAITS = {"Dependency": "for the steps before it", "BeginTime": "to begin again", "Resources": "for a free node",
          "Priority": "behind other jobs", "JobHeldUser": "held: scontrol release lets it go",
          "PartitionTimeLimit": "without end: its --time is longer than its partition allows; scancel it"}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """Attributes:
    title: Of the step.
    job: SLURM's number, or empty.
    state: finished, running, waiting, interrupted, failed, unknown (SLURM does not answer), not started, or not needed.
    epoch, left, dice: Of a training; empty where there is none.
    note: Why it failed, or what it waits for.
    """

    title: str
    job: str
    state: str
    epoch: str = ""
    left: str = ""
    dice: str = ""
    note: str = ""


@dataclass(frozen=True)
class Status:
    """A chain at one moment."""

    title: str
    folder: Path
    rows: tuple[Row, ...]

    @property
    def at_work(self) -> bool:
        """Whether anything still runs or waits, or may do so."""
        return any(row.state in ("running", "waiting", "unknown") for row in self.rows)

    @property
    def failed(self) -> bool:
        return any(row.state == "failed" for row in self.rows)


def chain_status(folder: Path) -> Status:
    """Look at a chain's records, its trainings' logs and, where there is one, SLURM's queue.

    Raises:
        SetupError: The chain's file cannot be read.
    """
    chain = read_chain(folder)
    states = job_states(chain.jobs.values())
    busy = {step.name for step in working(folder, chain.steps)}
    wanted = {step.name for step in needed(chain.steps)}
    rows = tuple(_row(chain, step, states, step.name in busy, step.name in wanted) for step in chain.steps)
    return Status(chain.title, folder, rows)


def _row(chain: Chain, step: Step, states: dict[str, JobState], busy: bool, wanted: bool) -> Row:
    job = chain.jobs.get(step.name, "")
    state, note = _state(chain, step, job, states.get(job), busy, wanted)
    progress = read_progress(step.folder) if step.folder is not None and step.kind in TRAININGS else None
    dice = validation_dice(step.proofs[0]) if step.kind == "training" else None
    if step.kind == "ensemble":
        dice = validation_dice(step.proofs[-1])
    elif dice is None and progress is not None and step.kind == "training":
        dice = progress.dice
    return Row(
        title=step.title,
        job=job,
        state=state,
        epoch="" if progress is None else f"{progress.epoch}{f'/{progress.epochs}' if progress.epochs else ''}",
        left=progress.left if progress is not None and state == "running" else "",
        dice="" if dice is None else f"{dice:.3f}",
        note=note,
    )


def _state(chain: Chain, step: Step, job: str, slurm: JobState | None, busy: bool, wanted: bool) -> tuple[str, str]:
    record = read_record(chain.folder, step.name)
    if slurm is not None and slurm.state == UNKNOWN:
        if not busy and not step.finished and not (record is not None and record.over(job)):
            return "unknown", f"SLURM does not answer: {slurm.reason}"
        slurm = None
    if slurm is not None and slurm.alive and (slurm.state == "PENDING" or not step.finished):
        again = f"start {record.starts + 1}, " if record is not None and slurm.state == "PENDING" else ""
        if slurm.state != "PENDING":
            return "running", "" if record is None or record.starts == 1 else f"start {record.starts}"
        if slurm.reason == NEVER:
            return "failed", "not run, because a step before it failed"
        return "waiting", f"{again}{_WAITS.get(slurm.reason, slurm.reason)}"
    if busy:
        return "running", ""
    if not wanted:
        return ("finished", "") if step.finished else ("not needed", "")
    if record is None:
        return _never_started(chain.folder, job, slurm)
    return ("interrupted" if _goes_on(record, slurm) else "failed"), _why(chain, step, record, slurm)


def _never_started(folder: Path, job: str, slurm: JobState | None) -> tuple[str, str]:
    if not job:
        return "not started", ""
    if slurm is not None and slurm.reason == NEVER:
        return "failed", "not run, because a step before it failed"
    if slurm is not None and slurm.state in STATES:
        return "failed", f"{STATES[slurm.state]} before it started"
    return "failed", our_line(read_end(job_log(folder, job))) or FORGOTTEN


def _goes_on(record: Record, slurm: JobState | None) -> bool:
    """Ended by a person, a power cut or a preemption, and not by a mistake: the same command goes on."""
    return slurm is None and record.job == "" and (record.status in (None, 75))


def _why(chain: Chain, step: Step, record: Record, slurm: JobState | None) -> str:
    """From the record where the step could still write one, else from SLURM, its lines and the end of the log."""
    node = f" ({record.node})" if record.job else ""
    printed = read_end(job_log(chain.folder, record.job)) if record.job else ""
    state = slurm.state if slurm is not None and slurm.state in STATES else slurm_state_in(printed)
    if record.reason and not (record.reason == TERMINATED and state):
        return f"{record.reason}{node}"
    if not state and not record.ended and not record.job:
        return "killed; start the chain again to go on"
    said = reason_of(record.status, read_end(log_file(chain.folder, step.name), record.offset), state)
    return f"{said}{node}"
