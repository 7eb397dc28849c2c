"""The arms of the benchmark: which network, which trainer, which pretraining. A new arm is one entry."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from ctnet_nnunet.errors import SetupError

Network = Literal["unet", "identity", "ctnet"]
"""``unet``: the plan's own; ``identity``: CTNet without its transformer, which is the same; ``ctnet``: CTNet."""


@dataclass(frozen=True)
class Pretraining:
    """A trainer, the weights of its pretext tasks, and changes to their options.

    ``label`` tells pretrainings apart whose tasks are the same.
    """

    trainer: str
    tasks: Mapping[str, float]
    options: Mapping[str, float] = field(default_factory=dict)
    label: str = ""

    @property
    def name(self) -> str:
        """For plans and folders: letters, digits and underscores."""
        return self.label or "_".join(task.replace("_", "") for task in self.tasks)

    @property
    def title(self) -> str:
        """For people."""
        return self.label or " + ".join(task.replace("_", " ") for task in self.tasks)


@dataclass(frozen=True)
class Arm:
    """One line of the tables.

    Attributes:
        name: As typed and printed.
        network: Which network is trained.
        trainer: Of the supervised training.
        pretraining: Before it, or None.
        all_labels: Trained once with every label of the pool, as a ceiling.
        weights: A user's own checkpoint to start from, in place of a pretraining.
        semi_supervised: Reads the images, never the labels, of the pool's other cases while it trains.
    """

    name: str
    network: Network
    trainer: str = "nnUNetTrainerCTNet"
    pretraining: Pretraining | None = None
    all_labels: bool = False
    weights: str | None = None
    semi_supervised: bool = False

    @property
    def plans(self) -> str:
        """Name of its plans file; no two arms share one, for it is the name of an arm's figures, too."""
        return "arm_" + "".join(c if c.isalnum() else "_" for c in self.name.replace("@", "_at_"))


def _pretrained(tasks: Mapping[str, float], trainer: str = "nnUNetTrainerCTNetPretrain") -> Pretraining:
    return Pretraining(trainer, dict(tasks))


def _planes(label: str, lines: float, location: float) -> Pretraining:
    options = {"planes_lines": lines, "planes_location": location}
    return Pretraining("nnUNetTrainerImagingPlanes", {"imaging_planes": 1.0}, options, label)


def _semi_supervised(network: Network, pretraining: Pretraining | None, suffix: str) -> list[Arm]:
    """Reciprocal learning, the usual method beside it, and the same frame without unlabelled scans."""
    trainers = {
        "twin": "nnUNetTrainerSupervisedTwin",
        "mean-teacher": "nnUNetTrainerMeanTeacher",
        "reciprocal": "nnUNetTrainerReciprocal",
    }
    return [
        Arm(f"{network}-{name}{suffix}", network, trainer, pretraining, semi_supervised=True)
        for name, trainer in trainers.items()
    ]


VOLUME_FUSION = _pretrained({"volume_fusion": 1.0}, "nnUNetTrainerVolF")

BOTH = _pretrained({"rotation": 1.0, "masked_features": 1.0})

ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm("unet", "unet", trainer="nnUNetTrainerStockSGD"),
        Arm("unet-adamw", "unet"),
        Arm("ctnet", "ctnet"),
        Arm("ctnet-identity", "identity"),
        Arm("ctnet+rotation", "ctnet", pretraining=_pretrained({"rotation": 1.0})),
        Arm("ctnet+masked", "ctnet", pretraining=_pretrained({"masked_features": 1.0})),
        Arm("ctnet+ssl", "ctnet", pretraining=BOTH),
        Arm("unet+volf", "unet", pretraining=VOLUME_FUSION),
        Arm("ctnet+volf", "ctnet", pretraining=VOLUME_FUSION),
        Arm(
            "ctnet+ssl+volf",
            "ctnet",
            pretraining=_pretrained({"rotation": 1.0, "masked_features": 1.0, "volume_fusion": 0.5}),
        ),
        Arm("location", "unet", pretraining=_planes("location", 0.0, 1.0)),
        Arm("lines", "unet", pretraining=_planes("lines", 1.0, 0.0)),
        Arm("planes", "unet", pretraining=_planes("planes", 1.0, 1.0)),
        Arm("ctnet-full", "ctnet", all_labels=True),
        *_semi_supervised("unet", None, ""),
        *_semi_supervised("unet", VOLUME_FUSION, "+volf"),
        *_semi_supervised("ctnet", None, ""),
        *_semi_supervised("ctnet", BOTH, "+ssl"),
    )
}


@dataclass(frozen=True)
class Selection:
    """The arms of a run, in the order of their tables."""

    arms: tuple[Arm, ...] = field(default_factory=tuple)

    def of_draws(self) -> list[Arm]:
        """Those that are trained on the labelled draws."""
        return [arm for arm in self.arms if not arm.all_labels]

    def with_all_others(self, checkpoints: Iterable[str]) -> Selection:
        """These arms first, then every other one that an earlier run may have trained in the same folder.

        Args:
            checkpoints: Names of the checkpoints that the folder knows.
        """
        started = [_started(arm, name, None) for name in checkpoints for arm in ARMS.values() if _can_start(arm)]
        here = {arm.name for arm in self.arms}
        return Selection((*self.arms, *(arm for arm in (*ARMS.values(), *started) if arm.name not in here)))


def _can_start(arm: Arm) -> bool:
    """Whether an arm can start from a user's checkpoint: one that has no pretraining of its own."""
    return arm.pretraining is None and not arm.all_labels


def _started(arm: Arm, checkpoint: str, file: str | None) -> Arm:
    return replace(arm, name=f"{arm.name}@{checkpoint}", weights=file)


def select(names: Iterable[str], checkpoints: Mapping[str, str]) -> Selection:
    """The arms of that name; ``ARM@NAME`` is ARM from the user's checkpoint NAME.

    Args:
        names: As typed.
        checkpoints: NAME → file. One that no arm starts from is ``ctnet@NAME``'s.

    Raises:
        SetupError: On an unknown name, or none.
    """
    chosen = [_named(name, checkpoints) for name in dict.fromkeys(names)]
    used = {arm.name.partition("@")[2] for arm in chosen}
    chosen += [_started(ARMS["ctnet"], name, file) for name, file in checkpoints.items() if name not in used]
    if not chosen:
        raise SetupError(f"--arms: none given; there are {', '.join(ARMS)}")
    return Selection(tuple(chosen))


def _named(name: str, checkpoints: Mapping[str, str]) -> Arm:
    base, at, checkpoint = name.partition("@")
    if base not in ARMS:
        raise SetupError(f"--arms {name}: no such arm; there are {', '.join(ARMS)}")
    if not at:
        return ARMS[base]
    if not _can_start(ARMS[base]):
        starting = ", ".join(arm.name for arm in ARMS.values() if _can_start(arm))
        raise SetupError(f"--arms {name}: {base} does not start from a checkpoint of yours; these do: {starting}")
    if checkpoint not in checkpoints:
        raise SetupError(f"--arms {name}: no checkpoint of that name; give --checkpoint {checkpoint or 'NAME'}=FILE")
    return _started(ARMS[base], checkpoint, checkpoints[checkpoint])
