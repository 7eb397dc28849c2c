"""The mean teacher against its formulas."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctnet_nnunet.semi_supervised.mean_teacher import MeanTeacher, MeanTeacherOptions
from tests.semi_supervised.nets import batch, gradients, net, weights


def quiet(**values: float) -> MeanTeacherOptions:
    return MeanTeacherOptions(teacher_noise=0.0, **values)


def test_the_average_follows_the_student_with_a_momentum_that_rises_to_the_decay() -> None:
    student = net(0)
    unit = MeanTeacher(student, MeanTeacherOptions(ema_decay=0.7))
    expected = weights(student)
    for count in range(6):
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(torch.randn_like(parameter))
        unit.after_step(student)
        # The first call copies; behind it the n-th average has the momentum 1 - 1/(n + 1), at most the decay.
        momentum = 0.0 if count == 0 else min(1 - 1 / (count + 1), 0.7)
        expected = momentum * expected + (1 - momentum) * weights(student)
        torch.testing.assert_close(weights(unit.teacher), expected)


def test_batch_norms_statistics_are_the_students() -> None:
    student = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    unit = MeanTeacher(student)
    student(torch.randn(2, 1, 4, 4))
    unit.after_step(student)
    assert torch.equal(unit.teacher[1].running_mean, student[1].running_mean)
    assert float(student[1].running_mean.abs().sum()) > 0


def test_the_consistency_is_the_mean_squared_difference_and_moves_the_student_alone() -> None:
    student, (_, _, x_u) = net(0), batch(0)
    unit = MeanTeacher(net(1), quiet())
    loss = unit.consistency(student, x_u)
    p, q = student(x_u).softmax(1), unit.teacher(x_u).softmax(1)
    assert loss.item() == pytest.approx(((p - q) ** 2).mean().item())
    loss.backward()
    assert float(gradients(student).abs().max()) > 0
    assert all(parameter.grad is None for parameter in unit.teacher.parameters())
    agreeing = MeanTeacher(student, quiet())
    assert agreeing.consistency(student, x_u).item() == 0.0


def test_regions_use_a_sigmoid_each() -> None:
    student, (_, _, x_u) = net(0), batch(0)
    unit = MeanTeacher(net(1), quiet(), regions=True)
    expected = F.mse_loss(student(x_u).sigmoid(), unit.teacher(x_u).sigmoid())
    assert unit.consistency(student, x_u).item() == pytest.approx(expected.item())


def test_the_noise_is_on_the_teachers_images_alone_and_cut_off() -> None:
    seen: dict[str, Tensor] = {}

    class Looks(nn.Module):
        name = "student"

        def forward(self, image: Tensor) -> Tensor:
            seen[self.name] = image
            return image.expand(-1, 2, -1, -1)

    student = Looks()
    unit = MeanTeacher(student, MeanTeacherOptions(teacher_noise=0.1))
    unit.teacher.name = "teacher"
    image = torch.randn(4, 1, 50, 50)
    torch.manual_seed(0)
    unit.consistency(student, image)
    noise = seen["teacher"] - image
    assert torch.equal(seen["student"], image)
    assert float(noise.abs().max()) == pytest.approx(0.2, abs=1e-5)
    assert float(noise.std()) == pytest.approx(0.096, abs=0.003)  # of a normal cut at two deviations, times 0.1


@pytest.mark.parametrize(("progress", "share"), [(0.0, 0.0), (0.25, 0.5), (0.5, 1.0), (0.9, 1.0)])
def test_the_ramp_up(progress: float, share: float) -> None:
    unit = MeanTeacher(net(0), MeanTeacherOptions(consistency=2.0, consistency_rampup=0.5))
    assert unit.weight(progress) == pytest.approx(2.0 * math.exp(-5 * (1 - share) ** 2))
    assert MeanTeacher(net(0), MeanTeacherOptions(consistency_rampup=0.0)).weight(0.0) == 0.1


def test_a_restart_takes_the_student_as_it_is() -> None:
    student = net(0)
    unit = MeanTeacher(student)
    for _ in range(3):
        unit.after_step(student)
    other = copy.deepcopy(net(5))
    unit.restart(other)
    assert torch.equal(weights(unit.teacher), weights(other))
    unit.after_step(student)
    assert torch.equal(weights(unit.teacher), weights(student))


@pytest.mark.parametrize(
    ("values", "name"),
    [({"consistency": -1.0}, "consistency"), ({"ema_decay": 1.0}, "ema_decay"), ({"teacher_noise": -1.0}, "noise"),
     ({"consistency_rampup": 1.5}, "consistency_rampup")],
)  # fmt: skip
def test_options_out_of_range_are_refused(values: dict[str, float], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        MeanTeacherOptions(**values)
