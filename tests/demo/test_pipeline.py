"""Records, resume and failure with small real commands in real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ctnet_nnunet.demo.pipeline import Pipeline, StepFailedError
from ctnet_nnunet.demo.records import FILE_NAME, open_book
from ctnet_nnunet.demo.steps import Step, Training
from ctnet_nnunet.errors import SetupError
from ctnet_nnunet.folder_lock import folder_lock
from ctnet_nnunet.process import Workplace, find_program, interruptible, run_command

VERSIONS = {"ctnet_nnunet": "1"}


class _Quiet:
    """A display that remembers what it was told."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.skipped: list[str] = []
        self.details: list[str] = []

    def start(self, number: int, total: int, title: str, line: str) -> None:
        self.started.append(title)

    def update(self, share: float, detail: str, remaining: float) -> None:
        assert 0.0 <= share <= 1.0
        assert remaining >= 0.0
        self.details.append(detail)

    def end(self, seconds: float, ok: bool) -> None:
        pass

    def skip(self, number: int, total: int, title: str) -> None:
        self.skipped.append(title)


def _python(code: str) -> tuple[str, ...]:
    return ("python", "-c", code)


def _writes(name: str, code: str = "") -> Step:
    """A step that adds a line to its output, so that a second run shows."""
    line = f"{code}; f = open('{name}.out', 'a'); f.write('x'); f.close(); print('hello from {name}')"
    return Step(name, name, _python(line.lstrip("; ")), 1.0, (Path(f"{name}.out"),))


def _run(folder: Path, steps: list[Step], settings: str = "full", versions: dict[str, str] | None = None) -> _Quiet:
    folder.mkdir(exist_ok=True)
    display = _Quiet()
    book = open_book(folder, settings)
    book.save()
    Pipeline(Workplace(folder, dict(os.environ)), book, display, versions or VERSIONS).run(steps)
    return display


def test_steps_run_in_order_and_are_recorded(tmp_path: Path) -> None:
    display = _run(tmp_path / "out", [_writes("a"), _writes("b")])

    runs = json.loads((tmp_path / "out" / FILE_NAME).read_text())["runs"]
    assert display.started == ["a", "b"]
    assert [(run["step"], run["exit_status"]) for run in runs] == [("a", 0), ("b", 0)]
    assert "hello from a" in (tmp_path / "out" / "logs" / "a.txt").read_text()


def test_finished_steps_are_skipped(tmp_path: Path) -> None:
    steps = [_writes("a"), _writes("b")]
    _run(tmp_path / "out", steps)

    display = _run(tmp_path / "out", steps)

    assert display.skipped == ["a", "b"]
    assert (tmp_path / "out" / "a.out").read_text() == "x"


@pytest.mark.parametrize("change", ["command", "version", "output"])
def test_what_changed_is_run_anew_and_all_behind_it(tmp_path: Path, change: str) -> None:
    out, steps, versions = tmp_path / "out", [_writes("a"), _writes("b"), _writes("c")], VERSIONS
    _run(out, steps)
    if change == "command":
        steps[1] = replace(steps[1], command=_python("open('b.out', 'w').write('other')"))
    elif change == "output":
        (out / "b.out").unlink()
    else:
        versions = {"ctnet_nnunet": "2"}

    display = _run(out, steps, versions=versions)

    assert display.started == (["a", "b", "c"] if change == "version" else ["b", "c"])
    assert (out / "c.out").read_text() == "x"  # removed before it was written again
    assert len(json.loads((out / FILE_NAME).read_text())["runs"]) == 3


def test_a_failing_command_stops_the_run_and_shows_its_last_lines(tmp_path: Path) -> None:
    bad = replace(_writes("b"), command=_python("print('the reason'); raise SystemExit(3)"))

    with pytest.raises(StepFailedError, match="ended with status 3") as caught:
        _run(tmp_path / "out", [_writes("a"), bad, _writes("c")])

    assert caught.value.tail[-1] == "the reason"
    assert caught.value.exit_status == 1
    assert not (tmp_path / "out" / "c.out").exists()
    assert _run(tmp_path / "out", [_writes("a"), _writes("b"), _writes("c")]).started == ["b", "c"]


class _InterruptedAt(_Quiet):
    """Ctrl-C just as a step is about to start."""

    def start(self, number: int, total: int, title: str, line: str) -> None:
        if title == "b":
            raise KeyboardInterrupt


def test_an_interruption_right_before_a_step_leaves_no_stale_results(tmp_path: Path) -> None:
    out, steps = tmp_path / "out", [_writes("a"), _writes("b")]
    _run(out, steps)
    (out / "a.out").unlink()
    pipeline = Pipeline(Workplace(out, dict(os.environ)), open_book(out, "full"), _InterruptedAt(), VERSIONS)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(steps)

    # 'a' is done anew; the result of 'b' in the folder was made from the old one.
    assert _run(out, steps).started == ["b"]


TRAIN = """
import pathlib, sys, time
folder = pathlib.Path('fold'); folder.mkdir(exist_ok=True)
first = int((folder / 'checkpoint_latest.pth').read_text()) if '--c' in sys.argv else 0
for epoch in range(first, 4):
    print(f'2026: Epoch {epoch}', flush=True)
    print(f'2026: train_loss -0.{epoch}', flush=True)
    (folder / 'checkpoint_latest.pth').write_text(str(epoch + 1))
    if epoch == 1 and '--c' not in sys.argv:
        STOP
    time.sleep(0.3)
(folder / 'done').write_text(str(first))
"""


def _training(stop: str) -> Step:
    command = _python(TRAIN.replace("STOP", stop))
    return Step("train", "train", (*command, "-w"), 2.0, (Path("fold"),), Training(Path("fold"), 4, (*command, "--c")))


def test_an_interrupted_training_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    step = _training("sys.exit(1)")
    with pytest.raises(StepFailedError):
        _run(tmp_path / "out", [step])

    display = _run(tmp_path / "out", [step])

    assert (tmp_path / "out" / "fold" / "done").read_text() == "2"
    assert "epoch 4/4, loss -0.3" in display.details
    lines = (tmp_path / "out" / "logs" / "train.txt").read_text().splitlines()
    assert sum(line.startswith("$ ") for line in lines) == 2
    runs = json.loads((tmp_path / "out" / FILE_NAME).read_text())["runs"]
    assert [run["exit_status"] for run in runs] == [1, 0]


def test_a_training_of_other_settings_starts_from_nothing(tmp_path: Path) -> None:
    with pytest.raises(StepFailedError):
        _run(tmp_path / "out", [_training("sys.exit(1)")])

    _run(tmp_path / "out", [_training("pass")])

    assert (tmp_path / "out" / "fold" / "done").read_text() == "0"


def test_other_settings_are_not_mixed(tmp_path: Path) -> None:
    _run(tmp_path / "out", [_writes("a")])

    with pytest.raises(SetupError, match="holds a full demo and this is a quick one"):
        _run(tmp_path / "out", [_writes("a")], settings="quick")


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")

    with pytest.raises(SetupError, match="holds other files"):
        open_book(tmp_path, "full")


@pytest.mark.parametrize("text", ["", "{}", '{"settings": "full", "runs": [{"step": 1}]}'])
def test_a_broken_record_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE_NAME).write_text(text)

    with pytest.raises(SetupError, match="--restart"):
        open_book(tmp_path, "full")


def test_a_missing_program_is_named() -> None:
    with pytest.raises(SetupError, match="nnUNetv2_no_such_command"):
        find_program("nnUNetv2_no_such_command")


def _is_running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks at processes through /proc")
def test_no_process_is_left_behind_by_an_interruption(tmp_path: Path) -> None:
    code = "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"
    command = _python(f"{code}; print(p.pid, flush=True); time.sleep(60)")
    log = tmp_path / "log.txt"

    def interrupt() -> None:
        if log.exists() and log.read_text().strip():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_command(command, Workplace(tmp_path, dict(os.environ)), log, interrupt)

    grandchild = int(log.read_text())
    deadline = time.monotonic() + 5
    while _is_running(grandchild) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _is_running(grandchild)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks at processes through /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_no_process_is_left_behind_by_an_interruption_of_its_start(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []
    real = subprocess.Popen

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        process = real(*args, **kwargs)
        started.append(process.pid)
        signal.raise_signal(number)
        return process

    monkeypatch.setattr(subprocess, "Popen", interrupted)
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background
    try:
        with pytest.raises(KeyboardInterrupt), interruptible():
            run_command(
                _python("import time; time.sleep(60)"), Workplace(tmp_path, dict(os.environ)), tmp_path / "log", int
            )
    finally:
        signal.signal(signal.SIGINT, earlier)
    assert started and not _is_running(started[0])


@pytest.mark.skipif(os.name != "posix", reason="file locks are inherited on POSIX systems")
def test_the_lock_outlives_a_killed_demo_as_long_as_its_command_runs(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [
            sys.executable, "-c",
            "import subprocess, sys, time, pathlib\n"
            "from ctnet_nnunet.folder_lock import folder_lock\n"
            "with folder_lock(pathlib.Path(sys.argv[1])) as fd:\n"
            "    p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], pass_fds=(fd,))\n"
            "    print(p.pid, flush=True)\n"
            "    time.sleep(60)\n",
            str(tmp_path),
        ],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert holder.stdout is not None
    command = int(holder.stdout.readline())
    holder.kill()
    holder.wait()

    with pytest.raises(SetupError, match="still works there"), folder_lock(tmp_path):
        pass
    os.kill(command, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while _is_running(command) and time.monotonic() < deadline:
        time.sleep(0.05)

    with folder_lock(tmp_path) as descriptor:
        assert descriptor > 0
