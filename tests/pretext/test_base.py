"""The module that holds a network with its tasks, and the errors of putting one together."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ctnet_nnunet.errors import PlanError
from ctnet_nnunet.pretext import PRETEXTS
from ctnet_nnunet.pretext.base import PretextModel, PretextTask, build_pretext
from tests.architectures.plan_table import Plan
from tests.pretext.units import CUBE, FLAT, context_of, generator, network_of, views_of

BOTH = {"rotation": 1.0, "masked_features": 1.0}


def model_of(plan: Plan, weights: dict[str, float], **options: Any) -> PretextModel:
    return build_pretext(PRETEXTS, network_of(plan), context_of(plan), weights, options)


@pytest.mark.parametrize("name", ["rotation", "masked_features"])
def test_a_network_without_tokens_is_refused_by_the_tasks_name(name: str) -> None:
    with pytest.raises(PlanError, match=f"task '{name}' needs a network with a transformer") as caught:
        build_pretext(PRETEXTS, CUBE.network(transformer=None), context_of(CUBE), {name: 1.0}, {})
    assert "identity" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_task_is_refused_and_the_valid_ones_are_listed() -> None:
    with pytest.raises(PlanError, match="jigsaw") as caught:
        model_of(CUBE, {"jigsaw": 1.0, "rotation": 1.0})
    assert all(name in str(caught.value) for name in PRETEXTS)
    with pytest.raises(PlanError, match="jigsaw"):
        model_of(CUBE, {"jigsaw": 0.0, "rotation": 1.0})


@pytest.mark.parametrize("weights", [{}, {"rotation": 0.0, "masked_features": 0.0}])
def test_no_task_at_all_is_refused(weights: dict[str, float]) -> None:
    with pytest.raises(PlanError, match="every weight is 0"):
        model_of(CUBE, weights)


def test_options_reach_their_task_and_others_are_ignored() -> None:
    model = model_of(CUBE, BOTH, rotations=10, mask_ratio=0.25, epochs=7, seed=1)
    assert len(model.tasks["rotation"].turns) == 10
    assert model.tasks["masked_features"].options.mask_ratio == 0.25
    assert model.tasks["masked_features"].options.mask_block == 2


def test_a_task_of_weight_0_is_left_out() -> None:
    model = model_of(CUBE, {"rotation": 0.0, "masked_features": 1.0})
    assert list(model.tasks) == ["masked_features"]


@pytest.mark.parametrize("plan", [CUBE, FLAT], ids=["3d", "2d"])
def test_the_loss_is_the_weighted_sum(plan: Plan) -> None:
    model = model_of(plan, {"rotation": 0.5, "masked_features": 3.0})
    outputs = model(model.prepare(views_of(plan), generator()))
    expected = 0.5 * outputs["rotation/loss"] + 3.0 * outputs["masked_features/loss"]
    assert torch.allclose(outputs["loss"], expected)
    assert float(outputs["rotation/loss"]) > 0
    assert float(outputs["masked_features/loss"]) > 0
    assert {"rotation/accuracy", "masked_features/token_std"} <= set(outputs)
    assert all(value.ndim == 0 for value in outputs.values())


def test_prepare_depends_on_the_generator_alone() -> None:
    model, views = model_of(CUBE, BOTH), views_of(CUBE)
    first = model.prepare(views, generator(1))
    torch.manual_seed(7)
    again, other = model.prepare(views, generator(1)), model.prepare(views, generator(2))
    for task, made in first.items():
        assert all(torch.equal(value, again[task][name]) for name, value in made.items())
    assert not torch.equal(first["masked_features"]["mask"], other["masked_features"]["mask"])


def test_the_network_keeps_its_own_keys_and_heads_lie_elsewhere() -> None:
    model = model_of(CUBE, BOTH)
    assert list(model.network.state_dict()) == list(network_of(CUBE).state_dict())
    network, tasks = ({k for k in model.state_dict() if k.startswith(part)} for part in ("network.", "tasks."))
    assert network | tasks == set(model.state_dict())
    assert {"tasks.rotation.head.1.weight", "tasks.masked_features.mask_token"} <= tasks
    assert any(key.startswith("tasks.masked_features.teacher.") for key in tasks)
    # A task gets the network handed in; it must not hold it, or its weights would be stored and trained twice.
    assert not [key for key in tasks if "decoder" in key]


def test_the_teacher_starts_from_the_network_as_it_is_and_follows_each_step() -> None:
    model = model_of(CUBE, BOTH, teacher_momentum=0.5)
    image = views_of(CUBE)["augmented"]
    teacher = model.tasks["masked_features"].teacher
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.add_(0.1)  # as loading weights would
    tokens = model.network.transformer.embed(model.network.convolutional_features(image))
    assert not torch.allclose(teacher(image), tokens, atol=1e-3)
    model.before_training()
    assert torch.equal(teacher(image), tokens)
    bias = teacher.modules_followed[-1].bias.clone()
    with torch.no_grad():
        model.network.transformer.embedding.bias.add_(1.0)
    model.after_step(0.0)
    assert torch.allclose(teacher.modules_followed[-1].bias, bias + 0.5)
    model.after_step(1.0)  # at the end the momentum is 1: it stays
    assert torch.allclose(teacher.modules_followed[-1].bias, bias + 0.5)


def test_every_registered_task_says_what_it_is() -> None:
    fields = [field for task in PRETEXTS.values() for field in task.Options.__dataclass_fields__]
    assert len(fields) == len(set(fields))  # they share the one ctnet block
    for task in PRETEXTS.values():
        assert issubclass(task, PretextTask)
        assert isinstance(task.needs_tokens, bool)
        task.Options()
