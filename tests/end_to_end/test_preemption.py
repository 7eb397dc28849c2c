"""SIGTERM and SIGUSR1: what the handler does, and a training that stops by them and goes on as if it never had."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from ctnet_nnunet.checkpoints import read_checkpoint
from ctnet_nnunet.trainers.preemption import SIGNALS, STOPPED_STATUS, StopSignals
from tests.end_to_end.commands import run_function, run_warm
from tests.end_to_end.test_kill_minus_nine import compare
from tests.end_to_end.tiny import TRAINER, Tiny

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of Unix")


@pytest.mark.parametrize("number", SIGNALS)
def test_the_signal_is_remembered_inside_and_works_as_before_behind(number: int) -> None:
    seen: list[int] = []
    before = signal.signal(number, lambda received, frame: seen.append(received))
    try:
        with StopSignals() as signals:
            assert signals.agreed(None) is None
            os.kill(os.getpid(), number)
            assert signals.agreed(None) == signal.Signals(number).name
        assert seen == []
        os.kill(os.getpid(), number)
        assert seen == [number]
    finally:
        signal.signal(number, before)


def test_between_no_parts_it_is_told_at_once() -> None:
    names: list[str] = []
    with StopSignals(names.append):
        os.kill(os.getpid(), signal.SIGUSR1)
        assert names == ["SIGUSR1"]


FORKED = """
import os, signal, time
from ctnet_nnunet.trainers.preemption import StopSignals
with StopSignals() as signals:
    for number, seconds in ((signal.SIGTERM, 60), (signal.SIGUSR1, 0.5)):
        child = os.fork()
        if child == 0:
            time.sleep(seconds)
            os._exit(7)
        time.sleep(0.2)
        os.kill(child, number)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), signals.received)
"""


def test_processes_that_load_data_die_of_the_one_and_not_of_the_other() -> None:
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == [f"{-signal.SIGTERM} 0", "7 0"], done.stderr


def _train_with_a_signal(dataset: str, number: int, hook: str, call: int, resume: bool) -> None:
    """Train fold 0; the process gets a signal while it is in the given call of a hook."""
    from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint

    trainer = get_trainer_from_args(dataset, "3d_fullres", 0, TRAINER, "CTNetPlans", resume, torch.device("cpu"))
    maybe_load_checkpoint(trainer, resume, False)
    original: Callable[..., object] = getattr(trainer, hook)
    calls: list[int] = []

    def signalled(*arguments: object) -> object:
        calls.append(len(calls))
        if len(calls) == call:
            os.kill(os.getpid(), number)
        return original(*arguments)

    setattr(trainer, hook, signalled)
    trainer.run_training()
    trainer.perform_actual_validation()


def test_a_stopped_training_says_so_and_ends_like_an_undisturbed_one(copy_of_planned: Tiny) -> None:
    tiny = copy_of_planned
    folder = tiny.fold(0)
    run_warm(tiny.env, *tiny.train(0)).succeeded()
    undisturbed = read_checkpoint(folder / "checkpoint_final.pth")
    shutil.rmtree(folder / "validation")

    stops: list[tuple[int, str, int, str, tuple[int, int]]] = [
        (signal.SIGUSR1, "train_step", 1, "SIGUSR1 after iteration 1 of 2 of epoch 0; go on with --c", (0, 1)),
        (signal.SIGTERM, "on_validation_epoch_start", 1, "SIGTERM after iteration 2 of 2 of epoch 0; go on", (0, 2)),
    ]
    for index, (number, hook, call, line, place) in enumerate(stops):
        train = functools.partial(_train_with_a_signal, str(tiny.id), number, hook, call, index > 0)
        stopped = run_function(tiny.env, train)
        assert stopped.status == STOPPED_STATUS == 75, stopped.stderr
        assert line in stopped.stdout
        left = read_checkpoint(folder / "checkpoint_latest.pth")
        assert (left["current_epoch"], len(left["ctnet"]["epoch_outputs"])) == place
    # Called when training starts, then when the final validation does.
    hook = "set_deep_supervision_enabled"
    last = functools.partial(_train_with_a_signal, str(tiny.id), signal.SIGUSR1, hook, 2, True)
    stopped = run_function(tiny.env, last)
    assert stopped.status == STOPPED_STATUS, stopped.stderr
    assert "stopped by SIGUSR1 when all epochs were done; --c makes the final validation" in stopped.stdout
    assert not (folder / "validation" / "summary.json").exists()
    compare(read_checkpoint(folder / "checkpoint_final.pth"), undisturbed)
    run_warm(tiny.env, *tiny.train(0, TRAINER, "--c")).succeeded()
    assert (folder / "validation" / "summary.json").is_file()
    compare(read_checkpoint(folder / "checkpoint_final.pth"), undisturbed)


def test_a_stop_says_nothing_of_the_processes_that_loaded_data(copy_of_planned: Tiny) -> None:
    train = functools.partial(_train_with_a_signal, str(copy_of_planned.id), signal.SIGTERM, "train_step", 1, False)
    stopped = run_function(copy_of_planned.env, train, nnUNet_n_proc_DA="2")
    assert stopped.status == STOPPED_STATUS
    assert "Traceback" not in stopped.stderr and "no longer alive" not in stopped.stderr
