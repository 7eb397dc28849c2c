"""What a pretext task is, and the one module that holds a network together with its tasks.

A task has three steps, so that a test can look at each: :meth:`PretextTask.sample` draws all randomness from an
explicit generator, :meth:`PretextTask.targets` makes views and targets from the draw deterministically, and
``forward`` runs the network on them and returns the loss. The first two run outside of what DistributedDataParallel
and torch.compile see; the third is inside.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ctnet_nnunet.errors import PlanError
from ctnet_nnunet.ranks import expected_count

Views = Mapping[str, Tensor]
"""A batch, holding the views that its tasks ask for:

- ``augmented`` (B, C, *patch), spatially and intensity augmented;
- ``inside`` (B, C, *inside_size), cut out of the volume without padding or interpolation, its intensities augmented
  on their own, and ``usable`` (B,) bool, False where a scan is too small or too empty for it;
- ``pair`` (B, 2, C, *patch), two independent sub-volumes of one scan, each scaled by 0.7 to 1.5 per axis and flipped at
  random, never padded, intensities as preprocessed;
- ``host`` (B, C, *patch), a slice of a study of imaging planes, augmented, with what is known of it: ``heat``
  (B, G, *patch), ``heat_valid`` (B, G) bool, ``location`` (B,), ``location_valid`` (B,) bool, and, where nothing was
  augmented, ``line`` (B, G, 3) and ``slices`` (B,); see :mod:`ctnet_nnunet.pretext.imaging_planes`.
"""
VIEWS = frozenset({"augmented", "inside", "pair", "host"})


@dataclass(frozen=True)
class PretextContext:
    """What a task may know of the plan.

    Attributes:
        patch_size: Voxels per axis of the ``augmented`` view.
        inside_size: Voxels per axis of the ``inside`` view.
        spacing: Voxel size in mm per axis, in the plan's axis order.
        axial_axis: The array axis along the body (superior-inferior), or None in 2d.
        input_channels: Channels of the image.
        batch_size: Samples of a batch in one process, None if it is not known.
    """

    patch_size: tuple[int, ...]
    inside_size: tuple[int, ...]
    spacing: tuple[float, ...]
    axial_axis: int | None
    input_channels: int
    batch_size: int | None = None


class PretextTask(nn.Module):
    """One task with its heads. Subclasses define the class attributes, ``sample``, ``targets`` and ``forward``."""

    Options: ClassVar[type[Any]]
    """Frozen dataclass; its fields are keys of the plan's ``ctnet`` block."""
    needs_tokens: ClassVar[bool]
    """Whether the network must have a transformer."""
    views: ClassVar[frozenset[str]]
    """Which of ``VIEWS`` it reads."""
    trains_decoder: bool = True
    """Whether its loss reaches the network's decoder; if not, processes need not join the decoder's gradients."""

    def __init__(self, network: nn.Module, context: PretextContext, options: Any) -> None:
        super().__init__()

    def sample(self, views: Views, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw all randomness for one batch."""
        raise NotImplementedError

    def targets(self, views: Views, draw: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Views and targets from a draw; deterministic, without the network."""
        raise NotImplementedError

    def counted(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        """How many entries of what ``targets`` made each loss is a mean of (L,); None for means over samples."""
        return None

    def forward(self, network: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run the network on what ``targets`` made; returns ``loss`` (scalar) and named metrics (scalars).

        A task with :meth:`counted` divides by :func:`whole_count`.
        """
        raise NotImplementedError

    def before_training(self, network: nn.Module) -> None:
        """Called once before a new training, when the network may have been given weights (EMA teachers)."""

    def after_step(self, network: nn.Module, progress: float) -> None:
        """Called behind each optimiser step with the share of the training done, 0..1 (EMA teachers)."""


def whole_count(batch: Mapping[str, Tensor], loss: int = 0) -> Tensor | None:
    """What to divide a loss's sum by, from ``count`` of :meth:`PretextModel.prepare`; None: what the batch counts."""
    return batch["count"][loss] if "count" in batch else None


class PretextModel(nn.Module):
    """A network and its weighted tasks in one module; its ``forward`` is what DDP and compile wrap.

    ``network`` keeps its own keys, so its state dict is the transferable checkpoint; heads and teachers lie in
    ``tasks``.
    """

    def __init__(self, network: nn.Module, tasks: Mapping[str, PretextTask], weights: Mapping[str, float]) -> None:
        super().__init__()
        self.network = network
        self.tasks = nn.ModuleDict(tasks)
        self.weights = dict(weights)

    @property
    def views(self) -> frozenset[str]:
        """The views that the tasks read, taken together."""
        return frozenset().union(*(task.views for task in self.tasks.values()))  # type: ignore[arg-type]

    @property
    def trains_decoder(self) -> bool:
        """Whether any task's loss reaches the decoder."""
        return any(task.trains_decoder for task in self.tasks.values())

    def prepare(self, views: Views, generator: torch.Generator) -> dict[str, dict[str, Tensor]]:
        """Sample every task and make its targets: task → name → tensor.

        In a distributed training all ranks call it: what a loss is a mean of is counted over all of them.
        """
        prepared = {}
        samples = len(next(iter(views.values())))
        for name, task in self.tasks.items():
            assert isinstance(task, PretextTask)
            batch = task.targets(views, task.sample(views, generator))
            counts = task.counted(batch)
            prepared[name] = batch if counts is None else {**batch, "count": expected_count(counts, samples)}
        return prepared

    def forward(self, prepared: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The weighted sum of losses as ``loss``, and every task's entries as ``<task>/<entry>``."""
        outputs: dict[str, Tensor] = {}
        total: Tensor | float = 0.0
        for name, task in self.tasks.items():
            result = task(self.network, prepared[name])
            total = total + self.weights[name] * result["loss"]
            outputs.update({f"{name}/{key}": value for key, value in result.items()})
        assert isinstance(total, Tensor)
        return {"loss": total, **outputs}

    def before_training(self) -> None:
        """Let every task start from the network as it is now."""
        for task in self.tasks.values():
            assert isinstance(task, PretextTask)
            task.before_training(self.network)

    def after_step(self, progress: float) -> None:
        """Let every task follow the network (EMA teachers)."""
        for task in self.tasks.values():
            assert isinstance(task, PretextTask)
            task.after_step(self.network, progress)


def build_pretext(
    registry: Mapping[str, type[PretextTask]],
    network: nn.Module,
    context: PretextContext,
    weights: Mapping[str, float],
    options: Mapping[str, Any],
) -> PretextModel:
    """Wrap a network with the tasks of positive weight.

    Args:
        registry: Name → task class (``PRETEXTS``).
        network: The network to pretrain; a task that needs tokens wants a CTNet with a transformer.
        context: What the plan says.
        weights: Task → weight λ of its loss; tasks of weight 0 are left out.
        options: Values for the fields of the tasks' ``Options``; others are ignored.

    Raises:
        PlanError: On an unknown task, no task at all, or a task that needs tokens on a network without them.
    """
    chosen = {name: weight for name, weight in weights.items() if weight > 0}
    if unknown := sorted(set(weights) - set(registry)):
        raise PlanError(f"ctnet option pretext: unknown task {unknown}; valid are {sorted(registry)}")
    if not chosen:
        raise PlanError(f"ctnet option pretext: every weight is 0; give one of {sorted(registry)} a positive weight")
    tasks = {}
    for name in chosen:
        task_class = registry[name]
        if task_class.needs_tokens and getattr(network, "transformer", None) is None:
            raise PlanError(
                f"ctnet option pretext: task {name!r} needs a network with a transformer, and this plan's has none; "
                "use a CTNet plan other than identity, or another task"
            )
        fields = task_class.Options.__dataclass_fields__
        own_options = task_class.Options(**{field: options[field] for field in fields if field in options})
        tasks[name] = task_class(network, context, own_options)
    return PretextModel(network, tasks, chosen)
