"""The parts of ResilientTrainer that decide whether a training goes on, on a stand-in without data or plans."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ctnet_nnunet.checkpoints import random_state
from ctnet_nnunet.errors import CheckpointError, PlanError, TrainingError
from ctnet_nnunet.planning.options import read_options
from ctnet_nnunet.trainers.checkpointing import CheckpointingTrainer
from ctnet_nnunet.trainers.resilient import ResilientTrainer
from ctnet_nnunet.trainers.schedule import adamw


class StandIn(ResilientTrainer):
    """One weight at 1.0, SGD with rate 0.1; what ResilientTrainer's methods read, and no constructor."""

    def __init__(self, folder: Path = Path("folder"), **changes: Any) -> None:
        self.network = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.network.weight)
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.1)
        self.grad_scaler, self.is_cascaded = None, False
        self.is_ddp, self.local_rank, self.device = False, 0, torch.device("cpu")
        self.output_folder, self.current_epoch, self.num_epochs = str(folder), 3, 10
        self.num_iterations_per_epoch = 4
        self._non_finite_total = self._non_finite_in_a_row = 0
        self._epoch_outputs: list[dict[str, Any]] = []
        self._saved_at, self._plotted_at = float("-inf"), 0.0
        self.disable_checkpointing, self.resuming, self.fold = False, False, 0
        self.options = read_options(None)
        self.schedule = self.options.schedule("supervised")
        self.log: list[str] = []
        vars(self).update(changes)

    def print_to_log_file(self, *words: Any, **options: Any) -> None:
        self.log.append(" ".join(map(str, words)))

    @property
    def weight(self) -> float:
        return float(self.network.weight)

    def loss(self, factor: float) -> torch.Tensor:
        """A loss whose value and gradient are ``factor`` times the weight and ``factor``."""
        return factor * self.network.weight.sum()


NAN, INF = float("nan"), float("inf")


def test_a_finite_step_is_taken_and_its_loss_returned() -> None:
    trainer = StandIn()
    assert trainer.optimise(trainer.loss(2.0)) == pytest.approx(2.0)
    assert trainer.weight == pytest.approx(1.0 - 0.1 * 2.0)
    assert trainer._non_finite_total == 0


@pytest.mark.parametrize("factor", [NAN, INF, -INF])
def test_a_loss_that_is_not_finite_is_skipped_and_counted(factor: float) -> None:
    trainer = StandIn()
    assert np.isnan(trainer.optimise(trainer.loss(factor)))
    assert trainer.weight == 1.0
    assert trainer.network.weight.grad is None
    assert (trainer._non_finite_total, trainer._non_finite_in_a_row) == (1, 1)


def test_a_gradient_that_is_not_finite_is_skipped_too() -> None:
    trainer = StandIn()
    shifted = trainer.network.weight.sum() - 1.0
    assert np.isnan(trainer.optimise(shifted.sqrt()))  # its value is 0, its slope infinite
    assert trainer.weight == 1.0
    assert trainer.network.weight.grad is None
    assert trainer._non_finite_total == 1


def test_gradients_are_clipped_to_the_norm() -> None:
    trainer = StandIn()
    trainer.optimise(trainer.loss(1000.0))
    assert trainer.weight == pytest.approx(1.0 - 0.1 * ResilientTrainer.clip_norm, rel=1e-4)


def test_only_a_row_of_them_ends_the_training_and_the_total_is_kept() -> None:
    trainer = StandIn()
    limit = trainer.non_finite_limit
    for _ in range(limit - 1):
        trainer.optimise(trainer.loss(NAN))
    trainer.optimise(trainer.loss(0.0))  # one good step in between
    assert trainer._non_finite_in_a_row == 0
    for _ in range(limit - 1):
        trainer.optimise(trainer.loss(NAN))
    with pytest.raises(TrainingError, match=f"loss not finite {limit} times in a row in epoch 3") as caught:
        trainer.optimise(trainer.loss(NAN))
    assert "learning_rate" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert trainer._non_finite_total == 2 * limit - 1
    assert trainer.weight == 1.0


@pytest.mark.parametrize(("factor", "weight"), [(2.0, 0.8), (INF, 1.0)])
def test_with_a_gradient_scaler(factor: float, weight: float) -> None:
    """The fp16 path: the scaler itself skips a step whose gradient overflowed."""
    trainer = StandIn(grad_scaler=torch.amp.GradScaler("cpu", init_scale=4.0))
    loss = trainer.loss(2.0) if factor == 2.0 else (trainer.network.weight.sum() - 1.0).sqrt()
    trainer.optimise(loss)
    assert trainer.weight == pytest.approx(weight)


def test_all_ranks_skip_when_one_must(monkeypatch: pytest.MonkeyPatch) -> None:
    def another_rank_saw_nan(flag: torch.Tensor, op: Any) -> None:
        assert op == torch.distributed.ReduceOp.MIN
        flag.mul_(0.0)

    monkeypatch.setattr(torch.distributed, "all_reduce", another_rank_saw_nan)
    trainer = StandIn(is_ddp=True)
    assert np.isnan(trainer.optimise(trainer.loss(2.0)))
    assert trainer.weight == 1.0


def test_skipped_steps_leave_the_epochs_mean_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[Any] = []
    base = CheckpointingTrainer.__mro__[1]
    monkeypatch.setattr(base, "on_train_epoch_end", lambda self, outputs: logged.append(outputs))
    trainer = StandIn(_non_finite_total=1)
    trainer.on_train_epoch_end([{"loss": 1.0}, {"loss": NAN}, {"loss": 3.0}])
    assert logged == [[{"loss": 1.0}, {"loss": 3.0}]]
    assert "1 steps skipped" in trainer.log[0]
    trainer.on_train_epoch_end([{"loss": NAN}])  # nothing else to log
    assert len(logged[1]) == 1


def test_continuing_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"--c: .* holds no checkpoint to continue from"):
        StandIn(tmp_path, resuming=True).refuse_impossible_resume()
    StandIn(tmp_path, resuming=False).refuse_impossible_resume()
    (tmp_path / "checkpoint_latest.pth").write_bytes(b"")
    StandIn(tmp_path, resuming=True).refuse_impossible_resume()


@pytest.mark.parametrize(("then", "now"), [(0.1, 1.0), (1.0, 0.1), (0.1, 0.0)])
def test_continuing_with_another_encoder_rate_is_refused(
    capsys: pytest.CaptureFixture[str], then: float, now: float
) -> None:
    trainer = StandIn(was_initialized=True, resuming=True)
    trainer.optimizer = adamw([trainer.network], trainer.schedule, encoder_rate=now)
    state = adamw([trainer.network], trainer.schedule, encoder_rate=then).state_dict()
    with pytest.raises(SystemExit) as end:
        trainer.load_checkpoint({"network_weights": trainer.network.state_dict(), "optimizer_state": state})
    assert end.value.code == 2
    assert f"trained with encoder_rate {then:g}, the plan now has {now:g}; set it back" in capsys.readouterr().err


def test_a_frozen_encoder_must_have_been_given(tmp_path: Path) -> None:
    trainer = StandIn(tmp_path)
    trainer._frozen = True
    with pytest.raises(PlanError, match=r"encoder_rate=0 freezes .* no -pretrained_weights FILE was given"):
        trainer._refuse_frozen_random_encoder()
    trainer.network.pretrained_from = "weights.pth"
    trainer._refuse_frozen_random_encoder()
    trainer.is_cascaded, trainer.configuration_name = True, "3d_cascade_fullres"
    with pytest.raises(PlanError, match="3d_cascade_fullres is a cascade's second stage, whose encoder must"):
        trainer._refuse_frozen_random_encoder()
    again = StandIn(tmp_path, resuming=True)
    again._frozen = True
    again._refuse_frozen_random_encoder()


def test_a_new_training_sets_the_old_ones_checkpoints_aside(tmp_path: Path) -> None:
    for name in ("checkpoint_final.pth", "checkpoint_best.pth", "progress.png"):
        (tmp_path / name).write_text(name)
    StandIn(tmp_path, resuming=True)._set_old_training_aside()
    assert (tmp_path / "checkpoint_final.pth").exists()
    trainer = StandIn(tmp_path)
    trainer._set_old_training_aside()
    (aside,) = tmp_path.glob("previous_*")
    assert {path.name: path.read_text() for path in aside.iterdir()} == {
        name: name for name in ("checkpoint_final.pth", "checkpoint_best.pth")
    }
    assert [path.name for path in tmp_path.glob("*.p*")] == ["progress.png"]
    assert str(aside) in trainer.log[0]
    trainer._set_old_training_aside()  # nothing is left to move
    assert len(list(tmp_path.glob("previous_*"))) == 1


def test_checkpoints_go_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    now, saved = SimpleNamespace(seconds=1000.0), []
    monkeypatch.setattr("time.monotonic", lambda: now.seconds)
    trainer = StandIn(_saved_at=1000.0)
    trainer.save_checkpoint = lambda name: saved.append((Path(name).name, now.seconds))  # type: ignore[method-assign]
    for now.seconds in (1001.0, 1000.0 + 60 * trainer.schedule.save_minutes - 1):
        trainer._save_by_the_clock()
    assert saved == []
    now.seconds += 1
    trainer._save_by_the_clock()
    assert saved == [("checkpoint_latest.pth", now.seconds)]


def test_folds_and_ranks_are_seeded_differently_and_repeatably() -> None:
    def draws(fold: int | str, rank: int) -> tuple[float, float, float]:
        StandIn(fold=fold, local_rank=rank).seed_everything()
        return float(torch.rand(1)), float(np.random.rand()), random.random()

    found = {(fold, rank): draws(fold, rank) for fold in (0, 1, 4, "all") for rank in (0, 1)}
    assert found == {(fold, rank): draws(fold, rank) for fold, rank in found}
    for generator in range(3):
        assert len({values[generator] for values in found.values()}) == len(found)


def test_behind_a_checkpoint_rank_0_draws_on_and_the_others_draw_something_else() -> None:
    def draws(rank: int, epoch: int) -> tuple[float, float, float]:
        StandIn(local_rank=rank, current_epoch=epoch)._go_on_drawing(state)
        return float(torch.rand(1)), float(np.random.rand()), random.random()

    StandIn().seed_everything()
    state = random_state()
    wanted = float(torch.rand(1)), float(np.random.rand()), random.random()
    assert draws(0, 3) == wanted
    found = {(rank, epoch): draws(rank, epoch) for rank in (1, 2) for epoch in (3, 4)}
    assert found == {(rank, epoch): draws(rank, epoch) for rank, epoch in found}
    for generator in range(3):
        assert len({wanted[generator], *(values[generator] for values in found.values())}) == 5


def test_the_progress_picture_is_drawn_sometimes_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now, drawn = SimpleNamespace(seconds=0.0), []
    monkeypatch.setattr("time.monotonic", lambda: now.seconds)
    trainer = StandIn(_plot_now=lambda folder: drawn.append(now.seconds))
    for now.seconds in (0.0, 10.0, 59.0, 61.0, 62.0):
        trainer._plot_sometimes("folder")
    trainer.current_epoch = trainer.num_epochs - 1
    trainer._plot_sometimes("folder")
    assert drawn == [61.0, 62.0]


@pytest.mark.parametrize(("wanted", "kind"), [(True, torch.bfloat16), (False, torch.float32)])
def test_autocast_can_be_turned_off_in_the_plan(
    wanted: bool, kind: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ctnet_nnunet.precision._cpu_has_bfloat16", lambda: True)
    trainer = StandIn(options=read_options({"mixed_precision": wanted}))
    with trainer.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is kind
