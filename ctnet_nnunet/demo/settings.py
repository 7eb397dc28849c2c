"""How long the demo trains: the full run and the quick one. All values go to ``ctnet plan --set``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DemoSettings:
    """One variant of the demo.

    Attributes:
        name: recorded with the run; a folder never mixes two.
        preset: of ``ctnet plan``.
        values: ``key=value`` pairs for ``--set``.
        pretrain_epochs, epochs: the same numbers as in ``values``, for the remaining time.
        mirrors: whether new scans are predicted in mirrored copies, too: eight times the passes.
        expected_seconds: of each kind of step on two cores, for the remaining time.
    """

    name: str
    preset: str
    values: tuple[str, ...]
    pretrain_epochs: int
    epochs: int
    mirrors: bool
    expected_seconds: dict[str, float]


PREPARATION_SECONDS = {"preprocess": 25.0, "plan": 12.0, "preprocess_unlabeled": 15.0}


def _settings(
    name: str,
    pretrain: tuple[int, int],
    fine_tune: tuple[int, int],
    mirrors: bool,
    seconds: tuple[float, float, float],
) -> DemoSettings:
    """``pretrain``, ``fine_tune``: (epochs, iterations per epoch); ``seconds``: of pretraining, a fold, prediction."""
    values = (
        "patch_size=[40,56,40]",
        "batch_size=2",
        "features_base=16",
        f"epochs={fine_tune[0]}",
        f"iterations={fine_tune[1]}",
        "val_iterations=2",
        "learning_rate=0.003",
        "warmup_epochs=1",
        f"pretrain.epochs={pretrain[0]}",
        f"pretrain.iterations={pretrain[1]}",
        "pretrain.val_iterations=2",
        "pretrain.learning_rate=0.0005",
        "pretrain.warmup_epochs=1",
    )
    expected = {**PREPARATION_SECONDS, **dict(zip(("pretrain", "fold", "predict"), seconds, strict=True))}
    return DemoSettings(name, "s", values, pretrain[0], fine_tune[0], mirrors, expected)


FULL = _settings("full", pretrain=(10, 15), fine_tune=(20, 10), mirrors=True, seconds=(75.0, 80.0, 40.0))
QUICK = _settings("quick", pretrain=(2, 4), fine_tune=(3, 8), mirrors=False, seconds=(15.0, 20.0, 15.0))
