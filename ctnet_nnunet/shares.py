"""How a batch is divided among the processes of a training, and when it cannot be."""

from __future__ import annotations

from ctnet_nnunet.errors import PlanError


def require_shares(configuration: str, batch: int, processes: int, equal_for: str | None) -> None:
    """Check that every process gets samples, and as many as the others where a loss joins whole batches.

    Args:
        configuration: Its name, for the message.
        batch: Samples of all processes together.
        equal_for: What needs equal shares, None where nothing does.

    Raises:
        PlanError: Fewer samples than processes, or unequal shares.
    """
    if batch < processes:
        raise PlanError(
            f"{configuration}: the plan's batch of {batch} is smaller than the {processes} processes; start {batch} of "
            "them, or give --batch-per-rank"
        )
    if batch % processes and equal_for is not None:
        raise PlanError(
            f"{configuration}: a batch of {batch} cannot be divided equally among {processes} processes, which "
            f"{equal_for} needs; start a number of them that divides it, or give --batch-per-rank"
        )
