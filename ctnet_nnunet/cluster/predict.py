"""``ctnet predict --engine slurm``: scans dealt out to jobs, waited for, and merged as if one process had done them."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ctnet_nnunet.cluster.options import SlurmOptions
from ctnet_nnunet.cluster.queue import UNKNOWN, JobState, job_states
from ctnet_nnunet.cluster.reason import FORGOTTEN, STATES, TERMINATED, read_end, slurm_state_in
from ctnet_nnunet.cluster.record import read_record
from ctnet_nnunet.cluster.shards import FOLDER, PARTS, Shard, cut, parts_of
from ctnet_nnunet.cluster.slurm import job_log, submit
from ctnet_nnunet.errors import DataError, SetupError
from ctnet_nnunet.evaluation.metrics import structures_from_labels
from ctnet_nnunet.evaluation.reference import reference_of
from ctnet_nnunet.files import write_text
from ctnet_nnunet.folder_lock import folder_lock
from ctnet_nnunet.inference.boxed import require_extent
from ctnet_nnunet.inference.deliver import make_folder
from ctnet_nnunet.inference.inputs import Found, Wanted, find_cases
from ctnet_nnunet.inference.inputs_volumes import check_choice, choose_volumes
from ctnet_nnunet.inference.merge import RECORD, Part, merged_record, move_case, read_part, write_merged
from ctnet_nnunet.inference.missing import MissingPairs
from ctnet_nnunet.inference.model import Model, load_model
from ctnet_nnunet.inference.run import Batch, Request, narrowed, torch_device

JOBS = "jobs.json"
KEY = "sharded"
"""In the merged record: the hash that says which later command goes on with it."""
POLL_SECONDS = 5.0
MISSING_LOOKS = 3
"""SLURM may not answer for a moment; a job that it does not know so often in a row is over."""
Tell = Callable[[str], None]


@dataclass
class _Run:
    """One command's work.

    Attributes:
        request: As asked for, with absolute paths.
        model: Loaded once here, for names, hashes and pages.
        found: The scans.
        order: Names of the cases, as they were found.
        labels: Case → where its label map goes.
        failures: Case → reason, of the newest start.
    """

    request: Request
    model: Model
    found: Found
    order: list[str]
    labels: dict[str, Path]
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.request.out / FOLDER

    @property
    def settings(self) -> str:
        """What must be equal for figures to stand in one table."""
        chosen = {key: str(value) for key, value in asdict(self.request).items() if key not in ("only", "force", "out")}
        return json.dumps({**chosen, "model": self.model.hashes}, sort_keys=True)


def predict_sharded(request: Request, jobs: int, options: SlurmOptions, tell: Tell) -> Batch:
    """Predict as :func:`~ctnet_nnunet.inference.run.predict_scans` does, in ``jobs`` SLURM jobs.

    What an earlier command of the same settings finished is kept; its jobs that still run are waited for.

    Raises:
        SetupError, DataError, PlanError, CheckpointError: If nothing can be predicted at all.
    """
    run = _look(request)
    if run.request.out.is_dir() and not request.force:
        _refuse_foreign(run)
    make_folder(run.request.out)
    with folder_lock(run.folder, "wait for it, or choose another -o"):
        if request.force:
            shutil.rmtree(run.folder / PARTS, ignore_errors=True)
            (run.request.out / RECORD).unlink(missing_ok=True)
        _wait(run, _earlier_jobs(run), tell)
        _absorb(run)
        left = [name for name in run.order if name not in _done(run)]
        if left:
            words = _command(request)
            shards = cut(left, words, run.folder, jobs, request.report)
            numbers = submit(list(shards), "ctnet_predict", run.folder, options)
            _keep_jobs(run, shards, numbers)
            tell(f"{len(left)} scans in {len(shards)} jobs: {', '.join(numbers)}")
            _wait(run, _earlier_jobs(run), tell)
            _absorb(run)
        return _merge(run)


def _look(request: Request) -> _Run:
    """Check and list on this machine, whose hardware does not matter: the jobs run elsewhere."""
    check_choice(request.volume)
    model = load_model(request.model, request.folds)
    if request.box:
        require_extent(reference_of(model.extras, model.source), model.source)
    with tempfile.TemporaryDirectory(prefix="ctnet-predict-") as temporary:
        missing = MissingPairs(model, request.synthesis, torch_device("cpu"))
        names = list(model.dataset_json["channel_names"].values())
        wanted = Wanted(names, model.file_ending, request.channels, missing.optional)
        found = find_cases(request.source, wanted, Path(temporary))
        choose_volumes(found, request.volume)
        found = narrowed(found, request)
    labels = {case.name: case.label_file(request.out, model.file_ending) for case in found.cases}
    return _Run(request, model, found, list(labels), labels)


def _refuse_foreign(run: _Run) -> None:
    """Label maps that this command would not itself have written are not touched."""
    there = [file for file in run.labels.values() if file.exists()]
    merged = read_part(run.request.out)
    known = merged is not None and merged.record.get(KEY, {}).get("settings") == run.settings
    if there and not known:
        raise SetupError(
            f"{there[0]}: exists already ({len(there)} such), from another model, other settings or one process; "
            "choose another -o, or --force"
        )


def _command(request: Request) -> tuple[str, ...]:
    words = ["ctnet", "predict", "-i", str(request.source), "-m", str(request.model), "--speed", request.speed]
    words += ["--device", request.device, "--engine", request.engine]
    words += ["-f", *request.folds] if request.folds else []
    words += [word for choice in request.channels for word in ("--channel", choice)]
    words += ["--synthesis", str(request.synthesis)] if request.synthesis is not None else []
    words += ["--volume", request.volume] if request.volume is not None else []
    words += ["--step", str(request.step)] if request.step is not None else []
    if request.mirrors is not None:
        words.append("--mirrors" if request.mirrors else "--no-mirrors")
    return (*words, *(f"--{name}" for name in ("box", "maps", "report") if getattr(request, name)))


def _keep_jobs(run: _Run, shards: list[Shard], numbers: list[str]) -> None:
    content = {
        number: {"name": shard.name, "cases": shard.cases} for number, shard in zip(numbers, shards, strict=True)
    }
    write_text(run.folder / JOBS, json.dumps({"settings": run.settings, "jobs": content}, indent=1) + "\n")


def _earlier_jobs(run: _Run) -> dict[str, Shard]:
    """The jobs that were submitted for this output folder, by number.

    Raises:
        SetupError: Jobs of other settings still run there.
    """
    try:
        content = json.loads((run.folder / JOBS).read_text(encoding="utf-8"))
        words = _command(run.request)
        shards = {
            number: Shard(item["name"], words, run.folder, tuple(item["cases"]), run.request.report)
            for number, item in content["jobs"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    if content.get("settings") != run.settings:
        alive = {number: state for number, state in job_states(shards).items() if state.alive}
        if silent := [state.reason for state in alive.values() if state.state == UNKNOWN]:
            raise SetupError(
                f"{run.request.out}: jobs of other settings may still run there, and SLURM does not say "
                f"({silent[0]}); try again where it answers"
            )
        if alive:
            raise SetupError(f"{run.request.out}: jobs of other settings still run there; scancel {' '.join(alive)}")
        shutil.rmtree(run.folder / PARTS, ignore_errors=True)
        return {}
    return shards


def _wait(run: _Run, shards: dict[str, Shard], tell: Tell) -> None:
    """Until all jobs are over; then the reasons of those cases that they did not finish are known."""
    states: dict[str, JobState] = {}
    unknown = dict.fromkeys(shards, 0)
    said = ""
    while True:
        now = job_states(shards)
        states |= now
        unknown = {number: 0 if number in now else unknown[number] + 1 for number in shards}
        alive = [n for n in shards if _alive(run, n, shards[n], now.get(n), unknown[n])]
        done = sum(int(shard.progress()) for shard in shards.values())
        total = sum(len(shard.cases) for shard in shards.values())
        waiting = sum(now[number].state == "PENDING" for number in alive if number in now)
        silent = [now[number].reason for number in alive if number in now and now[number].state == UNKNOWN]
        line = f"    {done}/{total} scans done, {len(alive) - waiting - len(silent)} jobs run, {waiting} wait"
        line += f"; SLURM does not answer about {len(silent)}: {silent[0]}" if silent else ""
        if alive and line != said:
            tell(line)
            said = line
        if not alive:
            break
        time.sleep(POLL_SECONDS)
    for number, shard in shards.items():
        run.failures |= shard.failures(_why(run, number, shard, states.get(number)))


def _alive(run: _Run, number: str, shard: Shard, state: JobState | None, looks: int) -> bool:
    """Whether a job may still do something; ``looks``: how often in a row SLURM did not know it."""
    record = read_record(run.folder, shard.name)
    if state is not None and state.state == UNKNOWN:
        return not (record is not None and record.over(number))
    if state is not None:
        return state.alive
    ended = record is not None and record.job == number and bool(record.ended)
    return not ended and looks < MISSING_LOOKS


def _why(run: _Run, number: str, shard: Shard, state: JobState | None) -> str:
    """Why a job did not come to a scan."""
    record = read_record(run.folder, shard.name)
    own = record if record is not None and record.job == number else None
    over = state is not None and not state.alive  # what it was when SLURM last knew it says nothing of its end
    slurm = state.state if state is not None and over else slurm_state_in(read_end(job_log(run.folder, number)))
    if own is not None and own.reason and not (own.reason == TERMINATED and slurm in STATES):
        return f"its job {number} failed on {own.node}: {own.reason}"
    if own is None and not slurm:
        return f"its job {number} {FORGOTTEN}"
    words = STATES.get(slurm, f"ended ({slurm.lower()})" if slurm else "ended without a word")
    return f"its job {number} {'was ' if words == 'cancelled' else ''}{words} before it came to this scan"


def _absorb(run: _Run) -> None:
    """Move whole cases from the shards' folders to the output, and write the tables of all that is there."""
    merged = read_part(run.request.out)
    earlier = [merged] if merged is not None and KEY in merged.record else []
    parts = parts_of(run.folder)
    whole: dict[str, Part] = {case: part for part in (*earlier, *parts) for case in part.cases(run.request.report)}
    moved = {case: part for case, part in whole.items() if part not in earlier}
    for case, part in moved.items():
        move_case(part, case, run.request.out, run.model.file_ending)
    order = [name for name in run.order if name in whole] + [name for name in whole if name not in run.order]
    run.failures = {case: why for case, why in run.failures.items() if case not in whole}
    if not whole:
        return
    shards = {case: {"job": part.folder.name} for case, part in moved.items()}
    before = earlier[0].record[KEY].get("shards", {}) if earlier else {}
    extra: dict[str, Any] = {KEY: {"settings": run.settings, "shards": {**before, **shards}}}
    failures = {**run.found.failures, **run.failures}
    extra["settings"] = {**(*earlier, *parts)[0].record["settings"], "out": str(run.request.out)}
    record = merged_record([*earlier, *parts], order, failures, extra)
    volumes = {case: whole[case].volumes[case] for case in order}
    write_merged(run.request.out, record, volumes)
    shutil.rmtree(run.folder / PARTS, ignore_errors=True)


def _done(run: _Run) -> set[str]:
    merged = read_part(run.request.out)
    return set(merged.cases(run.request.report)) if merged is not None and KEY in merged.record else set()


def _merge(run: _Run) -> Batch:
    """The batch as one process would have left it, and its page."""
    merged = read_part(run.request.out)
    failures = {**run.found.failures, **run.failures}
    if merged is None or not merged.record["cases"]:
        name, reason = next(iter(failures.items()))
        raise DataError(f"no case could be predicted; the first, {name}: {reason}")
    model, entries = run.model, merged.record["cases"]
    batch = Batch(
        structures_from_labels(model.dataset_json["labels"]),
        reference_of(model.extras, model.source),
        labels={case: run.request.out / entry["labels"] for case, entry in entries.items()},
        companions={case: [run.request.out / name for name in e["companions"]] for case, e in entries.items()},
        measurements={case: merged.volumes[case] for case in entries},
        warnings={case: entry["warnings"] for case, entry in entries.items()},
        seconds={case: entry["seconds"] for case, entry in entries.items()},
        failures=failures,
    )
    if run.request.report:
        from ctnet_nnunet.inference.report import write_batch_page

        write_batch_page(run.request.out, model, batch)
    if not failures:
        shutil.rmtree(run.folder, ignore_errors=sys.platform == "win32")
    return batch
