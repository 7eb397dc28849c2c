"""Kill a running training with ``kill -9`` at random moments, again and again, and continue it each time.

    python tests/end_to_end/kill_minus_nine.py --kills 20

The training is ``nnUNetv2_train`` in a process of its own on a tiny dataset. After each kill there must be a loadable
checkpoint, not older than ``save_minutes`` and the work of a step, from which ``--c`` goes on: the optimiser's step
count must equal the training's. At the end the network must equal, to the bit, that of a training that nobody killed:
then data, optimiser, schedule and random generators were all where they had been. Exit status 0 if all of it holds.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from ctnet_nnunet.checkpoints import read_checkpoint
from tests.conftest import FOLDERS, NnunetEnv
from tests.end_to_end.commands import BIN, environment
from tests.end_to_end.tiny import TRAINER, Tiny, prepare

ITERATIONS = 10
SAVE_MINUTES = 0.001
START_SECONDS = 240.0
# Beside the interval, a step, an epoch's validation, its progress.png and a busy machine may lie between checkpoints.
SLACK_SECONDS = 15.0


@dataclass
class Kill:
    """What a kill left: how old the checkpoint was, how far it had come, and whether a write was cut off."""

    age: float
    steps: int
    in_write: bool

    def text(self) -> str:
        where = ", in the middle of a write" if self.in_write else ""
        return f"loads, step {self.steps}, {self.age:.2f} s old{where}"


@dataclass
class Outcome:
    """The kills, and what is wrong; nothing wrong means success."""

    kills: list[Kill] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def summary(self) -> str:
        cut_off = sum(kill.in_write for kill in self.kills)
        oldest = max((kill.age for kill in self.kills), default=0.0)
        verdict = "; ".join(self.faults) or "every checkpoint loaded, the end equals an undisturbed training to the bit"
        return (
            f"{len(self.kills)} kills, {cut_off} in the middle of a write, oldest checkpoint {oldest:.2f} s: {verdict}"
        )


def steps_in(checkpoint: dict[str, Any]) -> int:
    """Training steps that a checkpoint has behind it."""
    return int(checkpoint["current_epoch"]) * ITERATIONS + len(checkpoint["ctnet"]["epoch_outputs"])


def optimiser_steps(checkpoint: dict[str, Any]) -> int:
    """Steps of AdamW, from its own count."""
    state = checkpoint["optimizer_state"]["state"]
    return int(max((float(entry["step"]) for entry in state.values()), default=0))


def kill_again_and_again(tiny: Tiny, trainer: str, kills: int, rng: random.Random) -> Outcome:
    """Train fold 0 through ``kills`` kills to its end; ``tiny`` is planned for it by :func:`planned_for`."""
    outcome = Outcome()
    latest = tiny.fold(0, trainer) / "checkpoint_latest.pth"
    for number in range(kills):
        more = ("--c",) if number else ()
        killed = start_and_kill(tiny, trainer, latest, rng, *more)
        if isinstance(killed, int):
            outcome.faults.append(f"the training ended by itself after {number} kills with exit status {killed}")
            return outcome
        age, in_write = killed
        outcome.kills.append(inspect(latest, age, in_write, outcome))
        print(f"kill {number + 1:2d}: {outcome.kills[-1].text()}", flush=True)
    finish(tiny, trainer, outcome)
    return outcome


def start_and_kill(tiny: Tiny, trainer: str, latest: Path, rng: random.Random, *more: str) -> tuple[float, bool] | int:
    """Start, let a random number of checkpoints be written, kill.

    Returns:
        The last checkpoint's age in seconds and whether a write was cut off; the exit status if it ended by itself.
    """
    process = start(tiny, trainer, *more)
    try:
        written, seen = rng.randint(1, 8), modified(latest)
        deadline = time.monotonic() + START_SECONDS
        while written and process.poll() is None and time.monotonic() < deadline:
            if modified(latest) != seen:
                written, seen = written - 1, modified(latest)
            time.sleep(0.002)
        if rng.random() < 0.5:
            wait_for_a_write(latest, process)
        else:
            time.sleep(rng.uniform(0, 0.2))
        if (status := process.poll()) is not None:
            return status
        process.send_signal(signal.SIGKILL)
        process.wait()
        return time.time() - latest.stat().st_mtime, bool(list(latest.parent.glob(".checkpoint_*.partial")))
    finally:
        process.kill()
        process.wait()


def start(tiny: Tiny, trainer: str, *more: str) -> subprocess.Popen[bytes]:
    """The real command."""
    command = [str(word) for word in tiny.train(0, trainer, *more)]
    return subprocess.Popen([str(BIN / command[0]), *command[1:]], env=environment(tiny.env), stdout=subprocess.DEVNULL)


def modified(file: Path) -> int:
    """When a file was replaced last, 0 while there is none."""
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def wait_for_a_write(latest: Path, process: subprocess.Popen[bytes]) -> None:
    """Until a checkpoint is being written under its temporary name."""
    partial = latest.with_name(f".{latest.name}.{process.pid}.partial")
    deadline = time.monotonic() + 5
    while not partial.exists() and process.poll() is None and time.monotonic() < deadline:
        pass


def inspect(latest: Path, age: float, in_write: bool, outcome: Outcome) -> Kill:
    """Load what the kill left and compare it with the kill before."""
    checkpoint = read_checkpoint(latest)
    kill = Kill(age, steps_in(checkpoint), in_write)
    number = len(outcome.kills) + 1
    if optimiser_steps(checkpoint) != kill.steps:
        outcome.faults.append(f"kill {number}: step {kill.steps}, but the optimiser's is {optimiser_steps(checkpoint)}")
    if outcome.kills and kill.steps < outcome.kills[-1].steps:
        outcome.faults.append(f"kill {number}: at step {kill.steps}, behind the kill before")
    if age > 60 * SAVE_MINUTES + SLACK_SECONDS:
        outcome.faults.append(f"kill {number}: the checkpoint was {age:.1f} s old")
    return kill


def finish(tiny: Tiny, trainer: str, outcome: Outcome) -> None:
    """Train to the end; then again, undisturbed, and compare."""
    final = tiny.fold(0, trainer) / "checkpoint_final.pth"
    ends = []
    for more in (("--c",), ()):
        if status := start(tiny, trainer, *more).wait():
            outcome.faults.append(f"nnUNetv2_train {' '.join(more)} ended with exit status {status}")
            return
        ends.append(read_checkpoint(final))
    killed, undisturbed = ends
    for name in killed["network_weights"]:
        if not torch.equal(killed["network_weights"][name], undisturbed["network_weights"][name]):
            outcome.faults.append(f"{name} differs from an undisturbed training's")
            break
    for name, values in undisturbed["logging"].items():
        if len(killed["logging"][name]) != len(values):
            outcome.faults.append(f"the log has {len(killed['logging'][name])} entries of {name}, not {len(values)}")
    if killed["logging"]["lrs"] != undisturbed["logging"]["lrs"]:
        outcome.faults.append("the learning rates differ from an undisturbed training's")


def planned_for(kills: int, env: NnunetEnv, number: int) -> Tiny:
    """A dataset whose plan trains longer than so many kills and writes a checkpoint at nearly every step."""
    schedule = (f"epochs={max(3, kills)}", f"iterations={ITERATIONS}", f"save_minutes={SAVE_MINUTES}")
    return prepare(env, number, "Killed", more=schedule)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trainer", default=TRAINER)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        env = NnunetEnv(Path(folder))
        for name in FOLDERS:
            (env.root / name).mkdir()
            os.environ[name] = str(env.root / name)
        with contextlib.redirect_stdout(io.StringIO()):  # nnU-Net's planning says much
            tiny = planned_for(arguments.kills, env, 900)
        outcome = kill_again_and_again(tiny, arguments.trainer, arguments.kills, random.Random(arguments.seed))
    print(f"{arguments.trainer}: {outcome.summary()}")
    return 1 if outcome.faults else 0


if __name__ == "__main__":
    sys.exit(main())
