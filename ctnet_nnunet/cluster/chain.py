"""A chain on disk: its steps and jobs in ``chain.json``, so that any process can see how far it is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ctnet_nnunet.cluster.queue import UNKNOWN, job_states
from ctnet_nnunet.cluster.record import read_record
from ctnet_nnunet.cluster.run_step import working
from ctnet_nnunet.cluster.step import Step, needed
from ctnet_nnunet.errors import SetupError
from ctnet_nnunet.files import write_text

FILE_NAME = "chain.json"


@dataclass
class Chain:
    """Attributes:
    folder: Where its logs, records and ``chain.json`` lie.
    title: For people.
    steps: In an order in which they can run.
    engine: ``local`` or ``slurm``.
    jobs: Step → SLURM's number, of the newest submission.
    """

    folder: Path
    title: str
    steps: tuple[Step, ...]
    engine: str = "local"
    jobs: dict[str, str] = field(default_factory=dict)

    def save(self) -> None:
        """Write ``chain.json``; a reader sees the old one or the whole new one."""
        steps = [asdict(step) for step in self.steps]
        content = {"title": self.title, "engine": self.engine, "jobs": self.jobs, "steps": steps}
        write_text(self.folder / FILE_NAME, json.dumps(content, indent=1, default=str) + "\n")


def read_chain(folder: Path) -> Chain:
    """The chain of a folder.

    Raises:
        SetupError: Its file cannot be read.
    """
    file = folder / FILE_NAME
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        steps = tuple(_step(item) for item in content["steps"])
        jobs = {str(name): str(job) for name, job in content["jobs"].items()}
        return Chain(folder, str(content["title"]), steps, str(content["engine"]), jobs)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SetupError(f"{file} cannot be read ({error!r}); start the chain again, finished steps stay") from error


def _step(item: dict[str, Any]) -> Step:
    def files(key: str) -> tuple[Path, ...]:
        return tuple(Path(name) for name in item[key])

    def maybe(key: str) -> Path | None:
        return None if item.get(key) is None else Path(item[key])

    changed = {key: files(key) for key in ("proofs", "made_from")} | {
        key: maybe(key) for key in ("folder", "weights", "output")
    }
    words = {key: tuple(item[key]) for key in ("words", "after", "accepted")}
    return Step(**{**item, **changed, **words})


def find_chains(results: Path, dataset: str = "*") -> list[Path]:
    """The chains' folders below nnUNet_results, of one dataset's folder or of all."""
    return sorted(file.parent for file in results.glob(f"{dataset}/*/*/{FILE_NAME}"))


def refuse_if_busy(folder: Path, steps: Sequence[Step]) -> None:
    """Two chains must not work in one folder, nor one at what another fills: preprocessed cases, a pretraining.

    Raises:
        SetupError: Jobs of an earlier submission, or of another chain that fills the same folders, still wait or run,
            or may do so because SLURM does not answer; or a step's command runs.
    """
    if (folder / FILE_NAME).is_file():
        chain = read_chain(folder)
        _refuse_jobs(chain, chain.jobs, "of an earlier start")
    todo = needed(steps)
    filled = {step.output for step in todo} - {None}
    for chain in _neighbours(folder):
        shared = [step.name for step in chain.steps if step.output in filled]
        _refuse_jobs(chain, {name: chain.jobs[name] for name in shared if name in chain.jobs}, "that do the same")
    if busy := working(folder, tuple(step for step in steps if step.output is None or step in todo)):
        raise SetupError(f"{folder}: {busy[0].title} still runs there; wait, or end it (`ctnet status` shows it)")


def _neighbours(folder: Path) -> list[Chain]:
    """The chains of the other models of a dataset, as far as their files can be read."""
    found = []
    for file in sorted(folder.parents[1].glob(f"*/{folder.name}/{FILE_NAME}")):
        if file.parent != folder:
            with suppress(SetupError):
                found.append(read_chain(file.parent))
    return found


def _refuse_jobs(chain: Chain, jobs: Mapping[str, str], which: str) -> None:
    states = job_states(jobs.values())
    over = {job for name, job in jobs.items() if (record := read_record(chain.folder, name)) and record.over(job)}
    alive = [job for job, state in states.items() if state.alive and not (state.state == UNKNOWN and job in over)]
    if not alive:
        return
    if all(states[job].state == UNKNOWN for job in alive):
        raise SetupError(
            f"{chain.folder}: {len(alive)} jobs {which} may still wait or run there ({alive[0]}, …), and SLURM does "
            f"not say ({states[alive[0]].reason}); try again where it answers"
        )
    raise SetupError(
        f"{chain.folder}: {len(alive)} jobs {which} still wait or run there ({alive[0]}, …); see `ctnet status`, or "
        f"end them: scancel {' '.join(sorted({job.split('_')[0] for job in alive}))}"
    )
