"""A chain as SLURM jobs: what is missing, folds as arrays, each job behind those whose results it reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ctnet_nnunet.cluster.chain import Chain, refuse_if_busy
from ctnet_nnunet.cluster.local import BUSY
from ctnet_nnunet.cluster.options import SlurmOptions
from ctnet_nnunet.cluster.record import forget
from ctnet_nnunet.cluster.slurm import cancel, step_works, submit
from ctnet_nnunet.cluster.step import TRAININGS, Step, needed
from ctnet_nnunet.folder_lock import folder_lock

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Group:
    """Steps that become one job, or one array.

    Attributes:
        steps: In the array's order.
        paired: Name of the group whose tasks these follow one by one, or empty.
        after: Names of the groups that must have succeeded as a whole.
    """

    name: str
    steps: tuple[Step, ...]
    paired: str = ""
    after: tuple[str, ...] = ()


def groups_of(steps: Sequence[Step]) -> list[Group]:
    """Cut what is needed into jobs and arrays.

    Folds whose pretraining is submitted, too, follow it one by one; the others form an array of their own.
    """
    names = {step.name for step in steps}
    pretrainings = [step for step in steps if step.kind == "pretraining"]
    trainings = [step for step in steps if step.kind == "training"]
    pretrained = {step.name for step in pretrainings}
    following = [step for step in trainings if pretrained & set(step.after)]
    alone = [step for step in trainings if step not in following]
    first = [step.name for step in steps if step.kind in ("preprocess", "unlabeled")]
    groups = [Group(s.name, (s,), after=tuple(n for n in s.after if n in names)) for s in steps if s.name in first]
    behind = tuple(first)
    if pretrainings:
        groups.append(Group("pretrain", tuple(pretrainings), after=behind))
    if following:
        groups.append(Group("folds", tuple(following), paired="pretrain"))
    if alone:
        groups.append(Group("more_folds" if following else "folds", tuple(alone), after=behind))
    folds = tuple(group.name for group in groups if group.steps[0].kind == "training")
    for step in steps:
        if step.kind == "ensemble":
            groups.append(Group(step.name, (step,), after=folds))
        elif step.kind == "report":
            groups.append(Group(step.name, (step,), after=("ensemble",) if "ensemble" in names else ()))
    return groups


def submit_chain(chain: Chain, options: SlurmOptions, before: Callable[[], None], tell: Tell) -> None:
    """Submit what is missing; the record of what was submitted is written job by job.

    Raises:
        SetupError: The chain is at work already, or SLURM refuses.
    """
    with folder_lock(chain.folder, BUSY):
        refuse_if_busy(chain.folder, chain.steps)
        before()
        chain.engine, chain.jobs = "slurm", {}
        chain.save()
        numbers: dict[str, str] = {}
        try:
            for group in groups_of(needed(chain.steps)):
                jobs = _submit_group(chain, group, options, numbers)
                numbers[group.name] = jobs[0].split("_")[0]
                tell(f"{group.name}: job {', '.join(jobs)}{_words(group, numbers)}")
        except BaseException:
            if left := cancel(numbers.values()):  # half a chain would run into nothing
                tell(left)
            raise


def _submit_group(chain: Chain, group: Group, options: SlurmOptions, numbers: dict[str, str]) -> list[str]:
    training = group.steps[0].kind in TRAININGS
    for step in group.steps:
        forget(chain.folder, step.name)
    jobs = submit(
        step_works(group.steps),
        group.name,
        chain.folder,
        options if training else replace(options, gpus=0),
        dependency(group, numbers),
    )
    chain.jobs |= {step.name: job for step, job in zip(group.steps, jobs, strict=True)}
    chain.save()
    return jobs


def dependency(group: Group, numbers: dict[str, str]) -> str:
    """As sbatch takes it: task behind task for paired arrays, else behind whole jobs."""
    parts = [f"afterok:{numbers[name]}" for name in group.after if name in numbers]
    if group.paired:
        kind = "aftercorr" if len(group.steps) > 1 else "afterok"
        parts.append(f"{kind}:{numbers[group.paired]}")
    return ",".join(parts)


def _words(group: Group, numbers: dict[str, str]) -> str:
    waits = [*group.after, *([group.paired] if group.paired else [])]
    behind = [f"{name} ({numbers[name]})" for name in waits if name in numbers]
    each = ", each behind its own" if group.paired and len(group.steps) > 1 else ""
    return f", behind {', '.join(behind)}{each}" if behind else ""
