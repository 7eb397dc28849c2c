"""The chain on one machine, one step after another."""

from __future__ import annotations

import time
from collections.abc import Callable

from ctnet_nnunet.cluster.chain import Chain, refuse_if_busy
from ctnet_nnunet.cluster.progress import read_progress
from ctnet_nnunet.cluster.record import log_file
from ctnet_nnunet.cluster.run_step import Place, run_step
from ctnet_nnunet.cluster.step import Step, needed
from ctnet_nnunet.folder_lock import folder_lock
from ctnet_nnunet.process import interruptible
from ctnet_nnunet.training_log import clock

Tell = Callable[[str], None]
LINE_EVERY_SECONDS = 60.0
BUSY = "wait, or end it (`ctnet status` shows it)"


def run_here(chain: Chain, before: Callable[[], None], tell: Tell) -> dict[str, str]:
    """Run what is missing; returns the titles of the steps that failed, or could not run, with the reason.

    Args:
        before: Called under the chain's lock, before the first step.

    Raises:
        SetupError: The chain is at work already.
    """
    failures: dict[str, str] = {}
    with interruptible(), folder_lock(chain.folder, BUSY):
        refuse_if_busy(chain.folder, chain.steps)
        before()
        chain.engine, chain.jobs = "local", {}
        chain.save()
        todo = needed(chain.steps)
        failed: set[str] = set()
        for number, step in enumerate(todo, start=1):
            missing = [other for other in step.after if other in failed]
            if missing:
                failures[step.title] = f"not run, because {_title(chain, missing[0])} failed"
            else:
                tell(f"[{number}/{len(todo)}] {step.title}\n    $ {' '.join(step.command())}")
                failures |= _run(chain, step, tell)
            if step.title in failures:
                tell(f"    {step.title}: FAILED: {failures[step.title]}")
                failed.add(step.name)
    return failures


def _run(chain: Chain, step: Step, tell: Tell) -> dict[str, str]:
    started = time.monotonic()
    record = run_step(step, Place(chain.folder), _lines(step, tell))
    if not record.reason:
        tell(f"    {step.title}: done after {clock(time.monotonic() - started)} min")
        return {}
    return {step.title: f"{record.reason} (whole output: {log_file(chain.folder, step.name)})"}


def _lines(step: Step, tell: Tell) -> Callable[[], None]:
    next_line = time.monotonic() + LINE_EVERY_SECONDS

    def while_running() -> None:
        nonlocal next_line
        if time.monotonic() >= next_line:
            next_line = time.monotonic() + LINE_EVERY_SECONDS
            progress = None if step.folder is None else read_progress(step.folder, step.kind == "training")
            if progress is not None:
                tell(f"    {step.title}: {progress}")

    return while_running


def _title(chain: Chain, name: str) -> str:
    return next(step.title for step in chain.steps if step.name == name)
