"""What SLURM's silence means, with programs of its names that fail as the real ones do."""

from __future__ import annotations

from pathlib import Path

import pytest

from ctnet_nnunet.cluster import predict, queue, slurm
from ctnet_nnunet.cluster.chain import Chain, refuse_if_busy
from ctnet_nnunet.cluster.options import SlurmOptions
from ctnet_nnunet.cluster.queue import UNKNOWN, JobState, job_states
from ctnet_nnunet.cluster.record import Record, write_record
from ctnet_nnunet.cluster.shards import Shard
from ctnet_nnunet.cluster.slurm import job_log
from ctnet_nnunet.cluster.status import chain_status
from ctnet_nnunet.cluster.step import Step
from ctnet_nnunet.cluster.submit import submit_chain
from ctnet_nnunet.errors import SetupError

SILENT = "echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1"
FORGOTTEN = "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"
NO_ACCOUNTING = "echo 'Slurm accounting storage is disabled' >&2; exit 1"


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all of PATH, with an sacct that keeps nothing."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    program(folder, "sacct", NO_ACCOUNTING)
    return folder


def program(folder: Path, name: str, script: str) -> None:
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)


def chain_with_job(folder: Path) -> Chain:
    step = Step("fold_0", "fold 0", "training", ("train",), (folder / "summary.json",), folder=folder / "fold_0")
    chain = Chain(folder / "model" / "crossval", "small", (step,), "slurm", {"fold_0": "12_0"})
    chain.save()
    return chain


def test_silence_is_no_answer_and_a_forgotten_job_is_one(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert job_states(["12"]) == {"12": JobState(UNKNOWN, "no squeue on PATH")}
    program(programs, "squeue", SILENT)
    (state,) = job_states(["12"]).values()
    assert state.state == UNKNOWN and state.alive and "Unable to contact slurm controller" in state.reason
    program(programs, "sacct", "echo '12|COMPLETED'")
    assert job_states(["12"]) == {"12": JobState("COMPLETED")}, "accounting is another program"
    program(programs, "sacct", NO_ACCOUNTING)
    program(programs, "squeue", FORGOTTEN)
    assert job_states(["12"]) == {}
    program(programs, "squeue", "echo '12|RUNNING|None'")
    assert job_states(["12", "13"]) == {"12": JobState("RUNNING")}
    program(programs, "squeue", "exec /bin/sleep 20")
    monkeypatch.setattr(queue, "SECONDS", 0.2)
    assert job_states(["12"])["12"].reason == "squeue did not answer within 0.2 s"


def test_no_second_chain_is_submitted_while_slurm_is_silent(programs: Path, tmp_path: Path) -> None:
    chain = chain_with_job(tmp_path)
    program(programs, "squeue", SILENT)
    with pytest.raises(SetupError, match=r"may still wait or run there \(12_0, …\), and SLURM does not say \(.*Unable"):
        refuse_if_busy(chain.folder, chain.steps)
    status = chain_status(chain.folder)
    assert [row.state for row in status.rows] == ["unknown"] and status.at_work and not status.failed
    assert "Unable to contact slurm controller" in status.rows[0].note

    back = Record("fold_0", "node", "now", "train", "12_0").finished(75, "its wall time ended; back in the queue")
    write_record(chain.folder, back)
    with pytest.raises(SetupError, match="may still wait"):
        refuse_if_busy(chain.folder, chain.steps)
    write_record(chain.folder, back.finished(1, "ValueError: no luck"))
    refuse_if_busy(chain.folder, chain.steps)
    assert [(row.state, row.note) for row in chain_status(chain.folder).rows] == [
        ("failed", "ValueError: no luck (node)")
    ]
    program(programs, "squeue", FORGOTTEN)
    (chain.folder / "records" / "fold_0.json").unlink()
    assert chain_status(chain.folder).failed
    job_log(chain.folder, "12_0").parent.mkdir()
    job_log(chain.folder, "12_0").write_text("submitit INFO\nctnet: error: fold_0: a run still works there\n")
    assert chain_status(chain.folder).rows[0].note == "fold_0: a run still works there"


def test_another_model_s_chain_may_fill_the_same_folder(programs: Path, tmp_path: Path) -> None:
    shared = tmp_path / "pretraining" / "fold_0"
    pretraining = Step("pretrain_0", "pretraining of fold 0", "pretraining", ("train",), (shared / "final",),
                       folder=shared, output=shared)  # fmt: skip
    fold = Step("fold_0", "fold 0", "training", ("train",), (tmp_path / "summary.json",), ("pretrain_0",))
    first, second = tmp_path / "one" / "crossval", tmp_path / "two" / "crossval"
    Chain(first, "one", (pretraining, fold), "slurm", {"pretrain_0": "7_0", "fold_0": "8_0"}).save()
    program(programs, "squeue", "echo '7_0|PENDING|Resources'; echo '8_0|PENDING|Dependency'")
    with pytest.raises(SetupError, match=r"one/crossval: 1 jobs that do the same still wait or run there \(7_0"):
        refuse_if_busy(second, (pretraining, fold))
    program(programs, "squeue", "echo '7_0|COMPLETED|None'; echo '8_0|RUNNING|None'")
    refuse_if_busy(second, (pretraining, fold))


class _Waiting:
    """What the waiting for shards reads of a run."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.failures = folder, dict[str, str]()


def test_a_prediction_waits_for_slurm_s_word(programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = Shard("shard_1", (), tmp_path, ("scan",), report=False)
    program(programs, "squeue", SILENT)
    looks: list[str] = []
    answers = iter([SILENT] * (2 * predict.MISSING_LOOKS) + ["echo '12|RUNNING|None'"])

    def next_answer(seconds: float) -> None:
        program(programs, "squeue", next(answers, FORGOTTEN))

    monkeypatch.setattr(predict.time, "sleep", next_answer)
    run = _Waiting(tmp_path)
    predict._wait(run, {"12": shard}, looks.append)  # type: ignore[arg-type]
    assert "SLURM does not answer about 1: slurm_load_jobs error: Unable" in looks[0]
    assert looks[1] == "    0/1 scans done, 1 jobs run, 0 wait"
    assert run.failures["scan"].startswith("its job 12 never started")


def test_programs_that_hang_end_in_words(programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "SECONDS", 0.2)
    for name in ("sinfo", "scancel"):
        program(programs, name, "exec /bin/sleep 20")
    assert slurm._time_limits() == {}
    assert slurm.cancel(["3", "4"]).endswith("end the jobs that are submitted already: scancel 3 4")
    assert slurm.cancel([]) == ""
    said: list[str] = []
    steps = (
        Step("preprocess", "preprocessing", "preprocess", ("x",), (tmp_path / "a",)),
        Step("fold_0", "fold 0", "training", ("x",), (tmp_path / "b.json",), ("preprocess",)),
    )

    def submit(works: object, title: str, *more: object) -> list[str]:
        if title != "preprocess":
            raise SetupError(f"SLURM refused {title}")
        return ["3"]

    monkeypatch.setattr("ctnet_nnunet.cluster.submit.submit", submit)
    with pytest.raises(SetupError, match="SLURM refused folds"):
        submit_chain(Chain(tmp_path / "m" / "crossval", "x", steps), SlurmOptions(9, 0, 1), lambda: None, said.append)
    assert said[-1] == "scancel did not answer; end the jobs that are submitted already: scancel 3"
