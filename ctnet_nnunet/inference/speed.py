"""What ``--speed`` means."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ctnet_nnunet.errors import SetupError


@dataclass(frozen=True)
class Speed:
    """Attributes:
    low_precision: bf16 where the device has it (fp16 on older GPUs), else float32.
    mirrors: Test-time mirroring over the axes that the model allows.
    step: Of the sliding window, as a share of the patch.
    folds: How many of the model's at most; None for all.
    """

    low_precision: bool
    mirrors: bool
    step: float
    folds: int | None

    def changed(self, mirrors: bool | None, step: float | None) -> Speed:
        """With other mirroring or steps, where not None.

        Raises:
            SetupError: A step that leaves gaps or does not move.
        """
        if step is not None and not 0 < step <= 1:
            raise SetupError(f"--step {step:g}: more than 0 and at most 1, a share of the patch")
        return replace(
            self,
            mirrors=self.mirrors if mirrors is None else mirrors,
            step=self.step if step is None else step,
        )


# docs/benchmarks.md says what "fast" costs in Dice.
SPEEDS = {
    "best": Speed(low_precision=False, mirrors=True, step=0.5, folds=None),
    "balanced": Speed(low_precision=True, mirrors=True, step=0.5, folds=None),
    "fast": Speed(low_precision=True, mirrors=False, step=0.5, folds=None),
}


def speed_of(name: str) -> Speed:
    """One of ``SPEEDS``.

    Raises:
        SetupError: Naming those that exist.
    """
    if name not in SPEEDS:
        raise SetupError(f"--speed {name}: one of {', '.join(SPEEDS)}")
    return SPEEDS[name]
