"""A chain on disk: its steps and jobs in ``chain.json``, so that any process can see how far it is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ctnet_nnunet.cluster.queue import job_states
from ctnet_nnunet.cluster.run_step import working
from ctnet_nnunet.cluster.step import Step
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
        return None if item[key] is None else Path(item[key])

    changed = {key: files(key) for key in ("proofs", "made_from")} | {key: maybe(key) for key in ("folder", "weights")}
    words = {key: tuple(item[key]) for key in ("words", "after", "accepted")}
    return Step(**{**item, **changed, **words})


def find_chains(results: Path, dataset: str = "*") -> list[Path]:
    """The chains' folders below nnUNet_results, of one dataset's folder or of all."""
    return sorted(file.parent for file in results.glob(f"{dataset}/*/*/{FILE_NAME}"))


def refuse_if_busy(folder: Path, steps: Sequence[Step]) -> None:
    """Two chains must not work in one folder.

    Raises:
        SetupError: Jobs of an earlier submission still wait or run, or a step's command does.
    """
    if (folder / FILE_NAME).is_file():
        jobs = read_chain(folder).jobs.values()
        alive = [job for job, state in job_states(jobs).items() if state.alive]
        if alive:
            raise SetupError(
                f"{folder}: {len(alive)} jobs of an earlier start still wait or run there ({alive[0]}, …); see "
                f"`ctnet status`, or end them: scancel {' '.join(sorted({job.split('_')[0] for job in alive}))}"
            )
    if busy := working(folder, tuple(steps)):
        raise SetupError(f"{folder}: {busy[0].title} still runs there; wait, or end it (`ctnet status` shows it)")
