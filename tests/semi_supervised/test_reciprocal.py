"""The reciprocal step against its definition: identities, enumeration, signs, and a loop written independently."""

from __future__ import annotations

import copy
import functools
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctnet_nnunet import precision
from ctnet_nnunet.semi_supervised.labels import Recomputed, negative_log_likelihood, pseudo_labels
from ctnet_nnunet.semi_supervised.reciprocal import Losses, ReciprocalOptions, ReciprocalStep
from tests.semi_supervised.nets import CLASSES, batch, gradients, net, plain_losses, step_of, weights

FD = ReciprocalOptions(feedback="finite_difference")


def risk(network: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float(F.cross_entropy(network(x), y))


# 1. h is to first order the drop of the student's labelled loss.


def error_of_h(rate: float) -> float:
    student, teacher = net(1), net(2)
    x_l, y_l, x_u = batch(3)
    before = risk(student, x_l, y_l)
    h = step_of(student, teacher, rate)(x_l, y_l, x_u)["h"]
    return abs(h - (before - risk(student, x_l, y_l)))


def test_h_is_the_drop_of_the_risk_up_to_the_square_of_the_rate() -> None:
    errors = [error_of_h(rate) for rate in (0.02, 0.01, 0.005, 0.0025)]
    for coarse, fine in itertools.pairwise(errors):
        assert coarse / fine == pytest.approx(4, rel=0.1)
    assert errors[-1] < 0.01 * 0.0025


def test_a_slower_part_of_the_student_enters_h_at_its_own_rate() -> None:
    errors = []
    for rate in (0.02, 0.01):
        student, teacher = net(1), net(2)
        x_l, y_l, x_u = batch(3)
        first, *others = student.parameters()
        groups = [{"params": [first], "lr": rate / 10}, {"params": others, "lr": rate}]
        step = ReciprocalStep(
            student, teacher, torch.optim.SGD(groups), torch.optim.SGD(teacher.parameters(), lr=rate), plain_losses()
        )
        before = risk(student, x_l, y_l)
        h = step(x_l, y_l, x_u)["h"]
        errors.append(abs(h - (before - risk(student, x_l, y_l))))
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)


def test_the_finite_difference_is_the_drop_whatever_the_optimiser() -> None:
    student, teacher = net(1), net(2)
    x_l, y_l, x_u = batch(3)
    step = step_of(student, teacher, 0.3, options=FD, momentum=0.9)
    for _ in range(3):
        before = risk(student, x_l, y_l)
        outputs = step(x_l, y_l, x_u)
        assert outputs["h"] == pytest.approx(before - risk(student, x_l, y_l), abs=1e-14)
        assert outputs["loss_student_labelled"] == pytest.approx(risk(student, x_l, y_l), abs=1e-14)


def test_the_finite_difference_is_taken_under_one_dropout() -> None:
    """With a student that does not move, two measurements under different dropout would differ."""
    torch.manual_seed(0)
    student = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.Dropout2d(0.5), nn.Conv2d(8, CLASSES, 1)).double()
    x_l, y_l, x_u = batch(3)
    assert step_of(student, net(2), 0.0, options=FD)(x_l, y_l, x_u)["h"] == 0.0
    differ = {risk(student, x_l, y_l) for _ in range(4)}
    assert len(differ) > 1


# 2. The expectation over all label maps, weighted with their probability, is the gradient of the student's risk.


def tiny(seed: int) -> tuple[nn.Module, nn.Module, Tensor, Tensor, Tensor]:
    """Two classes on four voxels: 16 label maps."""
    torch.manual_seed(seed)
    student, teacher = (nn.Conv2d(2, 2, 1).double() for _ in range(2))
    x_l, x_u = torch.randn(2, 1, 2, 2, 2, dtype=torch.float64)
    return student, teacher, x_l, torch.randint(2, (1, 2, 2)), x_u


def stepped_risk(student: nn.Module, labels: Tensor, x_l: Tensor, y_l: Tensor, x_u: Tensor, rate: float) -> float:
    moved = copy.deepcopy(student)
    F.cross_entropy(moved(x_u), labels).backward()
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter -= rate * parameter.grad
    return risk(moved, x_l, y_l)


def expectation_gradient(seed: int, rate: float) -> Tensor:
    """d/dθ_T of R at the student that made the expected step, by definition, without the feedback's derivation."""
    student, teacher, x_l, y_l, x_u = tiny(seed)
    log_p = F.log_softmax(teacher(x_u), 1)
    parameters = list(student.parameters())
    moved = [p.detach() for p in parameters]
    for bits in itertools.product((0, 1), repeat=4):
        labels = torch.tensor(bits).view(1, 2, 2)
        probability = log_p.gather(1, labels[:, None]).sum().exp()
        g_u = torch.autograd.grad(F.cross_entropy(student(x_u), labels), parameters)
        moved = [m - rate * probability * g for m, g in zip(moved, g_u, strict=True)]
    names = [name for name, _ in student.named_parameters()]
    logits = torch.func.functional_call(student, dict(zip(names, moved, strict=True)), (x_l,))
    gradient = torch.autograd.grad(F.cross_entropy(logits, y_l), list(teacher.parameters()))
    return torch.cat([g.flatten() for g in gradient])


def feedback_gradient(seed: int, rate: float, options: ReciprocalOptions, labels: Tensor) -> Tensor:
    """What the step gives the teacher for one label map, with no loss on labels."""
    student, teacher, x_l, y_l, x_u = tiny(seed)
    losses = plain_losses()
    losses = Losses(teacher=lambda output, _: 0.0 * output.sum(), student=losses.student, pseudo=losses.pseudo)
    step = step_of(student, teacher, rate, 0.0, options, losses=losses)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ctnet_nnunet.semi_supervised.reciprocal.pseudo_labels", lambda *_: labels)
        step(x_l, y_l, x_u)
    return gradients(teacher)


def estimated_expectation(seed: int, rate: float, options: ReciprocalOptions) -> Tensor:
    _, teacher, _, _, x_u = tiny(seed)
    log_p = F.log_softmax(teacher(x_u), 1).detach()
    total: Tensor | float = 0.0
    for bits in itertools.product((0, 1), repeat=4):
        labels = torch.tensor(bits).view(1, 2, 2)
        probability = log_p.gather(1, labels[:, None]).sum().exp()
        total = total + probability * feedback_gradient(seed, rate, options, labels)
    assert isinstance(total, Tensor)
    return total


@pytest.mark.parametrize("feedback", ["gradient", "finite_difference"])
def test_enumeration_of_all_label_maps(feedback: Any) -> None:
    voxels = 4
    summed = ReciprocalOptions(feedback=feedback, feedback_scale=voxels)
    for seed in (0, 1):
        for rate, least in ((0.1, 0.99), (0.01, 0.9999), (0.001, 0.999999)):
            true = expectation_gradient(seed, rate)
            estimate = estimated_expectation(seed, rate, summed)
            assert float(F.cosine_similarity(true, estimate, dim=0)) > least
        assert float(estimate.norm() / true.norm()) == pytest.approx(1, rel=0.01)


def test_the_mean_over_voxels_is_smaller_by_their_number() -> None:
    mean = estimated_expectation(0, 0.01, ReciprocalOptions())
    summed = estimated_expectation(0, 0.01, ReciprocalOptions(feedback_scale=4))
    torch.testing.assert_close(mean, summed / 4)


def test_sampled_labels_follow_the_predicted_distribution() -> None:
    logits = torch.tensor([2.0, 0.0, -1.0]).view(1, 3, 1, 1).expand(1, 3, 200, 200)
    drawn = pseudo_labels(logits, "sample", generator=torch.Generator().manual_seed(0))
    shares = torch.bincount(drawn.flatten(), minlength=3) / drawn.numel()
    torch.testing.assert_close(shares, logits[0, :, 0, 0].softmax(0), atol=0.01, rtol=0)
    inside = pseudo_labels(logits, "sample", regions=True, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(inside.mean((0, 2, 3)), logits[0, :, 0, 0].sigmoid().double(), atol=0.01, rtol=0)
    assert pseudo_labels(logits).unique().tolist() == [0]
    assert pseudo_labels(logits, regions=True)[0, :, 0, 0].tolist() == [True, False, False]


# 3. Signs.


class Fixed(nn.Module):
    """A teacher that predicts given labels, with one parameter that makes it surer of them."""

    def __init__(self, labels: Tensor, classes: int) -> None:
        super().__init__()
        self.onehot = F.one_hot(labels, classes).movedim(-1, 1).double()
        self.sureness = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, image: Tensor) -> Tensor:
        return self.sureness * self.onehot


@pytest.mark.parametrize("options", [ReciprocalOptions(), FD], ids=["gradient", "finite difference"])
@pytest.mark.parametrize("true", [True, False])
def test_true_labels_are_reinforced_and_wrong_ones_weakened(options: ReciprocalOptions, true: bool) -> None:
    x, y, _ = batch(0)
    y = (x[:, 0] > 0).long()
    student = net(1, classes=2)
    with torch.no_grad():
        for parameter in student[-1].parameters():
            parameter.mul_(0.01)  # near-uniform
    given = y if true else 1 - y
    teacher = Fixed(given, 2)
    losses = Losses(teacher=lambda output, _: 0.0 * output.sum(), student=F.cross_entropy, pseudo=F.cross_entropy)
    before = risk(teacher, x, given)
    h = step_of(student, teacher, 0.1, 5.0, options, losses=losses)(x, y, x)["h"]
    after = risk(teacher, x, given)
    assert (h > 0, after < before, h < 0, after > before) == ((True, True, False, False) if true else
                                                             (False, False, True, True))  # fmt: skip


# 4. Without a student's step there is no feedback, and the teacher is trained on labels alone.


def test_without_feedback_the_teacher_is_a_supervised_network_to_the_bit() -> None:
    teacher = net(2, dtype=torch.float32)
    alone = copy.deepcopy(teacher)
    step = step_of(net(1, dtype=torch.float32), teacher, rate=0.0, momentum=0.9)
    optimizer = torch.optim.SGD(alone.parameters(), 0.1, momentum=0.9)
    for seed in range(5):
        x_l, y_l, x_u = batch(seed, torch.float32)
        assert step(x_l, y_l, x_u)["h"] == 0.0
        optimizer.zero_grad()
        F.cross_entropy(alone(x_l), y_l).backward()
        optimizer.step()
    assert torch.equal(weights(teacher), weights(alone))


# 5. The student learns from pseudo-labels only.


@pytest.mark.parametrize("options", [ReciprocalOptions(), FD], ids=["gradient", "finite difference"])
def test_the_student_never_gets_a_gradient_of_labels(options: ReciprocalOptions) -> None:
    x_l, y_l, x_u = batch(0)

    def student_after(labels: Tensor, unlabelled: Tensor) -> tuple[Tensor, Tensor]:
        student, teacher = net(1), net(2)
        step_of(student, teacher, options=options, momentum=0.9)(x_l, labels, unlabelled)
        assert all(parameter.grad is None for parameter in student.parameters())
        return weights(student), weights(teacher)

    student, teacher = student_after(y_l, x_u)
    other_labels, taught = student_after((y_l + 1) % CLASSES, x_u)
    assert torch.equal(other_labels, student)
    assert not torch.equal(taught, teacher)
    assert not torch.equal(student_after(y_l, x_u + 0.1)[0], student)


# 6. Soft labels kill the signal.


def test_soft_labels_give_the_teacher_no_gradient() -> None:
    teacher, (_, _, x_u) = net(2), batch(0)
    logits = teacher(x_u)
    F.cross_entropy(logits, logits.detach().softmax(1)).backward()
    assert float(gradients(teacher).abs().max()) < 1e-15
    teacher.zero_grad()
    negative_log_likelihood(teacher(x_u), pseudo_labels(logits)).backward()
    assert float(gradients(teacher).abs().max()) > 1e-3


# 7. The teacher's gradient is that of one scalar.


@pytest.mark.parametrize("scale", [1.0, 50.0])
def test_the_teachers_gradient_is_that_of_the_combined_loss(scale: float) -> None:
    student, teacher, (x_l, y_l, x_u) = net(1), net(2), batch(0)
    reference = copy.deepcopy(teacher)
    outputs = step_of(student, teacher, 1.0, 0.0, ReciprocalOptions(feedback_scale=scale))(x_l, y_l, x_u, True)
    prediction = reference(x_u)
    feedback = scale * outputs["h"] * F.cross_entropy(prediction, prediction.argmax(1))
    (F.cross_entropy(reference(x_l), y_l) + feedback).backward(retain_graph=True)
    torch.testing.assert_close(gradients(teacher), gradients(reference), rtol=1e-6, atol=0)

    alone = torch.autograd.grad(feedback, list(reference.parameters()))
    labels = torch.autograd.grad(F.cross_entropy(reference(x_l), y_l), list(reference.parameters()))
    norms = [torch.cat([g.flatten() for g in found]).norm() for found in (alone, labels)]
    assert outputs["feedback_share"] == pytest.approx(float(norms[0] / norms[1]), rel=1e-6)


# 8. An independent loop.


def loop(student: nn.Module, teacher: nn.Module, batches: list[tuple[Tensor, Tensor, Tensor]], fd: bool) -> list[float]:
    """The paper's iteration in plain torch, gradients put together by hand."""
    opt_s = torch.optim.SGD(student.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    opt_t = torch.optim.SGD(teacher.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    found = []
    for x_l, y_l, x_u in batches:
        with torch.no_grad():
            risk_before = F.cross_entropy(student(x_l), y_l).item()
        p_t = teacher(x_u)
        y_u = p_t.argmax(1)
        opt_s.zero_grad()
        F.cross_entropy(student(x_u), y_u).backward()
        g_u = [p.grad.clone() for p in student.parameters()]
        torch.nn.utils.clip_grad_norm_(student.parameters(), 0.5)
        opt_s.step()
        opt_s.zero_grad()
        risk_after = F.cross_entropy(student(x_l), y_l)
        risk_after.backward()
        h = 0.1 * sum(float((a * p.grad).sum()) for a, p in zip(g_u, student.parameters(), strict=True))
        if fd:
            h = risk_before - risk_after.item()
        found.append(h)
        by_feedback = torch.autograd.grad(F.cross_entropy(p_t, y_u), list(teacher.parameters()))
        by_labels = torch.autograd.grad(F.cross_entropy(teacher(x_l), y_l), list(teacher.parameters()))
        for p, a, b in zip(teacher.parameters(), by_feedback, by_labels, strict=True):
            p.grad = h * a + b
        torch.nn.utils.clip_grad_norm_(teacher.parameters(), 0.5)
        opt_t.step()
    return found


@pytest.mark.parametrize("fd", [False, True])
def test_an_independent_loop_gives_the_same_networks(fd: bool) -> None:
    student, teacher = net(1, dtype=torch.float32), net(2, dtype=torch.float32)
    expected_student, expected_teacher = copy.deepcopy(student), copy.deepcopy(teacher)
    batches = [batch(seed, torch.float32) for seed in range(3)]
    hs = loop(expected_student, expected_teacher, batches, fd)

    def sgd(network: nn.Module) -> torch.optim.SGD:
        return torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)

    options = FD if fd else ReciprocalOptions()
    step = ReciprocalStep(student, teacher, sgd(student), sgd(teacher), plain_losses(), options, clip_norm=0.5)
    for (x_l, y_l, x_u), h in zip(batches, hs, strict=True):
        assert step(x_l, y_l, x_u)["h"] == pytest.approx(h, rel=1e-3, abs=1e-7)
    torch.testing.assert_close(weights(student), weights(expected_student), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(weights(teacher), weights(expected_teacher), rtol=1e-5, atol=1e-7)


# 9. The step goes on where it stood.


def test_a_restored_step_goes_on_as_if_nothing_had_happened() -> None:
    options = ReciprocalOptions(feedback_baseline=0.5)
    step = step_of(net(1), net(2), options=options, momentum=0.9)
    step(*batch(0))
    assert step.baseline != 0.0
    other = step_of(net(3), net(4), options=options, momentum=0.9)
    for name in ("student", "teacher", "student_optimizer", "teacher_optimizer"):
        getattr(other, name).load_state_dict(copy.deepcopy(getattr(step, name).state_dict()))
    other.load_state_dict(step.state_dict())
    for seed in (1, 2):
        assert other(*batch(seed)) == pytest.approx(step(*batch(seed)), nan_ok=True, abs=0)
    assert torch.equal(weights(other.student), weights(step.student))
    assert torch.equal(weights(other.teacher), weights(step.teacher))


def test_the_baseline_is_a_moving_average_that_leaves_h_as_it_is() -> None:
    step = step_of(net(1), net(2), options=ReciprocalOptions(feedback_baseline=0.75))
    seen = 0.0
    for seed in range(3):
        assert step.baseline == pytest.approx(seen)
        seen = 0.75 * seen + 0.25 * step(*batch(seed))["h"]


def test_the_baseline_is_subtracted_from_the_feedback() -> None:
    def taught(baseline: float, momentum: float) -> tuple[Tensor, float]:
        teacher = net(2)
        step = step_of(net(1), teacher, 1.0, 0.0, ReciprocalOptions(feedback_baseline=momentum))
        step.baseline = baseline
        h = step(*batch(0))["h"]
        return gradients(teacher), h

    _, h = taught(0.0, 0.0)
    alone = copy.deepcopy(net(2))
    x_l, y_l, _ = batch(0)
    F.cross_entropy(alone(x_l), y_l).backward()
    torch.testing.assert_close(taught(h, 0.5)[0], gradients(alone))
    assert not torch.allclose(taught(0.0, 0.5)[0], gradients(alone))


# Gradients that are missing or not finite, clipping, precision.


class WithUnused(nn.Module):
    """A network with heads that no output depends on, like deep supervision that is off."""

    def __init__(self, seed: int, both: bool) -> None:
        super().__init__()
        self.inner, self.unused = net(seed), nn.Conv2d(1, 3, 1).double()
        self.both = both

    def forward(self, image: Tensor) -> list[Tensor] | Tensor:
        logits = self.inner(image)
        return [logits, self.unused(image)] if self.both else logits


def test_parameters_without_a_gradient_add_nothing() -> None:
    x_l, y_l, x_u = batch(0)
    plain = step_of(net(1), net(2))(x_l, y_l, x_u)
    student, teacher = WithUnused(1, both=False), WithUnused(2, both=False)
    found = step_of(student, teacher)(x_l, y_l, x_u, True)
    assert found["h"] == plain["h"]
    assert math.isfinite(found["feedback_share"])
    assert student.unused.weight.grad is None and teacher.unused.weight.grad is None


def test_under_deep_supervision_pseudo_labels_and_feedback_are_of_the_full_resolution() -> None:
    x_l, y_l, x_u = batch(0)
    student, teacher = WithUnused(1, both=True), WithUnused(2, both=True)

    def all_scales(outputs: list[Tensor], target: Tensor) -> Tensor:
        assert isinstance(outputs, list)
        return sum(F.cross_entropy(logits, target) for logits in outputs)

    before = weights(student.unused)
    losses = Losses(teacher=all_scales, student=F.cross_entropy, pseudo=F.cross_entropy)
    found = step_of(student, teacher, losses=losses)(x_l, y_l, x_u)
    assert found["h"] == step_of(net(1), net(2))(x_l, y_l, x_u)["h"]
    assert torch.equal(weights(student.unused), before)
    assert float(teacher.unused.weight.grad.abs().max()) > 0


def test_h_is_of_the_gradient_before_clipping() -> None:
    student, clipped = net(1), net(1)
    x_l, y_l, x_u = batch(0)
    rate = 1e-7  # the student hardly moves, so that clipping changes nothing but the gradient
    free = step_of(student, net(2), rate)(x_l, y_l, x_u)
    tight = step_of(clipped, net(2), rate, clip_norm=0.01)(x_l, y_l, x_u)
    assert tight["h"] == pytest.approx(free["h"], rel=1e-5)
    moved = (weights(clipped) - weights(net(1))).norm() / rate
    assert float(moved) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("options", [ReciprocalOptions(), FD], ids=["gradient", "finite difference"])
def test_an_image_that_is_not_finite_moves_neither_network(options: ReciprocalOptions) -> None:
    student, teacher, (x_l, y_l, x_u) = net(1), net(2), batch(0)
    outputs = step_of(student, teacher, options=options)(x_l, y_l, torch.full_like(x_u, float("nan")))
    assert math.isnan(outputs["loss"])
    assert torch.equal(weights(student), weights(net(1)))
    assert torch.equal(weights(teacher), weights(net(2)))
    assert all(p.grad is None for network in (student, teacher) for p in network.parameters())


@pytest.mark.parametrize("options", [ReciprocalOptions(), FD], ids=["gradient", "finite difference"])
def test_labelled_images_that_are_not_finite_leave_the_teacher_alone(options: ReciprocalOptions) -> None:
    student, teacher, (x_l, y_l, x_u) = net(1), net(2), batch(0)
    step = step_of(student, teacher, options=options)
    assert math.isnan(step(torch.full_like(x_l, float("inf")), y_l, x_u)["loss"])
    assert torch.equal(weights(teacher), weights(net(2)))
    assert math.isfinite(float(weights(student).sum()))
    assert math.isfinite(step(x_l, y_l, x_u)["loss"])


def test_a_loss_scaler_changes_nothing_but_the_scale() -> None:
    x_l, y_l, x_u = batch(0, torch.float32)
    results = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=1024.0)):
        student, teacher = net(1, dtype=torch.float32), net(2, dtype=torch.float32)
        outputs = step_of(student, teacher, 0.5, scaler=scaler, clip_norm=0.1)(x_l, y_l, x_u, True)
        results.append((outputs, weights(student), weights(teacher)))
    (plain, *of_plain), (scaled, *of_scaled) = results
    assert scaled == pytest.approx(plain, rel=1e-5)
    for a, b in zip(of_plain, of_scaled, strict=True):
        torch.testing.assert_close(a, b)


def test_a_scale_that_overflows_is_lowered_and_the_iteration_skipped() -> None:
    student, teacher = net(1, dtype=torch.float32), net(2, dtype=torch.float32)
    x_l, y_l, x_u = batch(0, torch.float32)
    scaler = torch.amp.GradScaler("cpu", init_scale=3e38)
    step = step_of(student, teacher, scaler=scaler)
    assert math.isnan(step(x_l, y_l, 1e3 * x_u)["loss"])
    assert torch.equal(weights(student), weights(net(1, dtype=torch.float32)))
    assert scaler.get_scale() < 3e38
    for _ in range(40):
        outputs = step(x_l, y_l, x_u)
    assert math.isfinite(outputs["loss"])


def bfloat16() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


def test_bfloat16_stays_near_float32() -> None:
    x_l, y_l, x_u = batch(0, torch.float32)
    exact = step_of(net(1, dtype=torch.float32), net(2, dtype=torch.float32), 1.0)(x_l, y_l, x_u)
    student = net(1, dtype=torch.float32)
    rough = step_of(student, net(2, dtype=torch.float32), 1.0, autocast=bfloat16)(x_l, y_l, x_u)
    assert rough["h"] == pytest.approx(exact["h"], rel=0.1)
    assert rough["loss"] == pytest.approx(exact["loss"], rel=0.02)
    assert weights(student).dtype is torch.float32


def in_bfloat16(student: nn.Module, x_l: Tensor, y_l: Tensor) -> float:
    with bfloat16():
        return risk(student, x_l, y_l)


def test_the_finite_difference_is_measured_in_float32() -> None:
    """In bf16 a step's drop of the risk would drown in the rounding of the two risks."""
    x_l, y_l, x_u = batch(0, torch.float32)
    student = net(1, dtype=torch.float32)
    step = step_of(student, net(2, dtype=torch.float32), 0.01, options=FD, autocast=bfloat16)
    for _ in range(3):
        before, rough = risk(student, x_l, y_l), in_bfloat16(student, x_l, y_l)
        h = step(x_l, y_l, x_u)["h"]
        assert h == pytest.approx(before - risk(student, x_l, y_l), abs=1e-7)
        assert abs(rough - in_bfloat16(student, x_l, y_l) - h) > 0.02 * abs(h)


def test_noise_is_on_the_students_unlabelled_images_alone() -> None:
    seen: dict[str, list[Tensor]] = {"student": [], "teacher": []}
    step = step_of(net(1), net(2), options=ReciprocalOptions(student_noise=0.5))
    for name in seen:
        getattr(step, name).register_forward_pre_hook(lambda _, images, name=name: seen[name].append(images[0]))
    x_l, y_l, x_u = (torch.cat([part] * 20) for part in batch(0))
    step(x_l, y_l, x_u)
    (noisy, student_labelled), (clean, teacher_labelled) = seen["student"], seen["teacher"]
    assert torch.equal(clean, x_u) and torch.equal(student_labelled, x_l) and torch.equal(teacher_labelled, x_l)
    assert float((noisy - x_u).std()) == pytest.approx(0.5, rel=0.05)


def test_regions_are_labelled_with_a_sigmoid_each() -> None:
    x_l, _, x_u = batch(0)
    y_l = torch.stack([x_l[:, 0] > 0, x_l[:, 0] > 1, x_l[:, 0] < -1], 1)
    student, teacher = net(1), net(2)
    prediction = teacher(x_u)
    reference = copy.deepcopy(teacher)
    outputs = step_of(student, teacher, 1.0, 0.0, losses=plain_losses(regions=True), regions=True)(x_l, y_l, x_u)
    for region in range(CLASSES):
        share = float((prediction[:, region] > 0).double().mean())
        assert outputs[f"pseudo_label_share_{region}"] == pytest.approx(share)
    feedback = F.binary_cross_entropy_with_logits(reference(x_u), (prediction > 0).double())
    (F.binary_cross_entropy_with_logits(reference(x_l), y_l.double()) + outputs["h"] * feedback).backward()
    torch.testing.assert_close(gradients(teacher), gradients(reference), rtol=1e-6, atol=1e-12)


def test_shares_of_classes_sum_to_one() -> None:
    outputs = step_of(net(1), net(2))(*batch(0))
    assert sum(outputs[f"pseudo_label_share_{index}"] for index in range(CLASSES)) == pytest.approx(1)


def test_recomputing_the_teacher_gives_the_same_to_the_bit() -> None:
    x_l, y_l, x_u = batch(0)

    def noisy(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.Dropout2d(0.3), nn.Conv2d(8, CLASSES, 1)).double()

    results = []
    for wrap in (lambda network: network, Recomputed):
        student, teacher = net(1), noisy(2)
        step = step_of(student, teacher)
        step.teacher = wrap(teacher)
        torch.manual_seed(5)
        outputs = [step(x_l, y_l, x_u, measure)["loss"] for measure in (False, True)]
        results.append((outputs, weights(student), weights(teacher)))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])
    assert torch.equal(results[0][2], results[1][2])


def test_recomputing_works_under_the_autocast_of_shallow_volumes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both passes must compute in the same types: two slices under a kernel of three stay float32."""
    monkeypatch.setattr(precision, "bfloat16_supported", lambda device: True)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, CLASSES, 3, padding=1))
    context = functools.partial(precision.autocast, torch.device("cpu"))
    image, found = torch.randn(1, 1, 2, 6, 6), []
    for teacher in (network, Recomputed(network, context)):
        network.zero_grad()
        with context():
            output = teacher(image)
        output.float().square().mean().backward()
        found.append(gradients(network))
    assert torch.equal(found[0], found[1])


@pytest.mark.parametrize(
    "values",
    [{"feedback_scale": -1.0}, {"student_noise": -1.0}, {"feedback_baseline": 1.0}, {"feedback_baseline": -0.1}],
)
def test_options_out_of_range_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        ReciprocalOptions(**values)
