"""Cross-modality feature transition (CMFT): two generators and two discriminators on pairs of sequences.

Zhang et al., Pattern Recognition 110:107562 (2021): least-squares GAN with a cycle, the generators being the branches
of the fusion network but for their last layer. G goes from pair a to pair b, F back. The generators learn first, then
both discriminators, on images out of a pool. Different from the released code: the discriminators are really frozen
while the generators learn, and every slot of the pool is drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctnet_nnunet import ranks
from ctnet_nnunet.architectures.cross_modality import (
    CONVOLUTIONS,
    PAPER_FEATURES,
    PAPER_LEVELS,
    CMFFNet,
    Discriminator,
    initialise,
)


@dataclass(frozen=True)
class CMFTOptions:
    """Weights of the generators' loss, and the pool.

    Attributes:
        cycle_weight: Of |F(G(a)) − a|₁ and |G(F(b)) − b|₁.
        paired_weight: Of |G(a) − b|₁ and |F(b) − a|₁; 0 in the paper, although a and b are of one patient.
        pool_size: Generated images that a discriminator may be shown again; 0 for none.
    """

    cycle_weight: float = 10.0
    paired_weight: float = 0.0
    pool_size: int = 10

    def __post_init__(self) -> None:
        if min(self.cycle_weight, self.paired_weight) < 0:
            raise ValueError(f"cycle_weight={self.cycle_weight}, paired_weight={self.paired_weight}: 0 or more")
        if self.pool_size < 0:
            raise ValueError(f"pool_size={self.pool_size}: 0 or more")


class Translators(nn.Module):
    """Both generators: the branches of a fusion network with linear output layers of their own.

    Args:
        network: Its ``branch_a`` is the body of G, its ``branch_b`` that of F; they are shared, not copied.
        dimensions: 2 or 3.
    """

    def __init__(self, network: CMFFNet, dimensions: int = 3) -> None:
        super().__init__()
        self.branch_a, self.branch_b = network.branch_a, network.branch_b
        size_a, size_b = (len(pair) for pair in network.pairs)
        convolution = CONVOLUTIONS[dimensions]
        self.heads = nn.ModuleDict({
            "a_to_b": convolution(self.branch_a.widths[0], size_b, 1),
            "b_to_a": convolution(self.branch_b.widths[0], size_a, 1),
        })  # fmt: skip
        initialise(self.heads)

    def a_to_b(self, a: Tensor) -> Tensor:
        """G: pair a (B, sequences of a, *patch) → pair b (B, sequences of b, *patch)."""
        generated: Tensor = self.heads["a_to_b"](self.branch_a.features(a)[0])
        return generated

    def b_to_a(self, b: Tensor) -> Tensor:
        """F: pair b → pair a."""
        generated: Tensor = self.heads["b_to_a"](self.branch_b.features(b)[0])
        return generated

    def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        """Both pairs → ``fake_b`` = G(a), ``fake_a`` = F(b), ``cycled_a`` = F(G(a)), ``cycled_b`` = G(F(b))."""
        fake_b, fake_a = self.a_to_b(a), self.b_to_a(b)
        return {
            "fake_a": fake_a, "fake_b": fake_b, "cycled_a": self.b_to_a(fake_b), "cycled_b": self.a_to_b(fake_a),
        }  # fmt: skip


class Discriminators(nn.Module):
    """D_a judges pairs a, D_b pairs b.

    Args:
        size_a, size_b: Sequences of the pairs.
        dimensions: 2 or 3.
        features, levels: See :class:`~ctnet_nnunet.architectures.cross_modality.Discriminator`.
    """

    def __init__(
        self,
        size_a: int,
        size_b: int,
        dimensions: int = 3,
        features: int = PAPER_FEATURES,
        levels: int = PAPER_LEVELS,
    ) -> None:
        super().__init__()
        self.a = Discriminator(size_a, dimensions, features, levels)
        self.b = Discriminator(size_b, dimensions, features, levels)
        initialise(self)

    def forward(self, images_a: Tensor, images_b: Tensor) -> tuple[Tensor, Tensor]:
        """Pairs a and pairs b → patch scores of each."""
        return self.a(images_a), self.b(images_b)


class ImagePool:
    """The last generated images: half of the time, a discriminator sees an older one in place of the newest.

    Args:
        size: Images that it keeps; 0 keeps none.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.images: list[Tensor] = []

    def query(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Generated images (B, …) → those to judge (B, …): the images themselves while the pool fills."""
        return torch.stack([self._one(image, generator) for image in images.detach()])

    def _one(self, image: Tensor, generator: torch.Generator) -> Tensor:
        if len(self.images) < self.size:
            self.images.append(image.clone())
            return image
        if self.size == 0 or float(torch.rand((), generator=generator)) < 0.5:
            return image
        slot = int(torch.randint(self.size, (), generator=generator))
        older, self.images[slot] = self.images[slot], image.clone()
        return older

    def state(self) -> list[Tensor]:
        """The images, slot by slot, for a checkpoint."""
        return list(self.images)

    def load_state(self, images: list[Tensor], device: torch.device) -> None:
        """Restore what :meth:`state` gave."""
        self.images = [image.to(device) for image in images]


def adversarial(scores: Tensor, real: bool) -> Tensor:
    """Least-squares GAN: mean squared distance of the scores from 1 (real) or 0."""
    return F.mse_loss(scores.float(), torch.full_like(scores, float(real), dtype=torch.float32))


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """½[(D(real) − 1)² + D(fake)²], means over scores."""
    return 0.5 * (adversarial(real, True) + adversarial(fake, False))


def cycle_loss(image: Tensor, cycled: Tensor) -> Tensor:
    """Mean absolute difference, in units of the normalised intensities."""
    return F.l1_loss(cycled.float(), image.float())


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """No gradient for the module's parameters inside; gradients pass through it."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in module.parameters():
            parameter.requires_grad_(True)


class CMFTStep:
    """The losses of one iteration; the caller steps the optimisers, the generators' first.

    Args:
        translators: As they train: bare or wrapped by DistributedDataParallel.
        discriminators: Bare, for the generators' step.
        discriminators_in_training: The same as they train.
        options: Weights and pool.
        generator: Draws from the pools; its state belongs into a checkpoint. In a distributed training all ranks seed
            it alike: each keeps the pools of the whole batch, and judges its part of what was drawn from them.
    """

    def __init__(
        self,
        translators: nn.Module,
        discriminators: nn.Module,
        discriminators_in_training: nn.Module,
        options: CMFTOptions,
        generator: torch.Generator,
    ) -> None:
        self.translators, self.discriminators = translators, discriminators
        self.discriminators_in_training = discriminators_in_training
        self.options, self.generator = options, generator
        self.pools = {"a": ImagePool(options.pool_size), "b": ImagePool(options.pool_size)}

    def generators(self, a: Tensor, b: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Both pairs of the same patches → losses of G and F, ``loss`` the whole, and what they generated.

        The discriminators get no gradient.
        """
        made = self.translators(a, b)
        with frozen(self.discriminators):
            scores_a, scores_b = self.discriminators(made["fake_a"], made["fake_b"])
        losses = {
            "adversarial_a": adversarial(scores_a, True),
            "adversarial_b": adversarial(scores_b, True),
            "cycle_a": cycle_loss(a, made["cycled_a"]),
            "cycle_b": cycle_loss(b, made["cycled_b"]),
        }
        total = losses["adversarial_a"] + losses["adversarial_b"]
        total = total + self.options.cycle_weight * (losses["cycle_a"] + losses["cycle_b"])
        if self.options.paired_weight:
            losses["paired"] = cycle_loss(a, made["fake_a"]) + cycle_loss(b, made["fake_b"])
            total = total + self.options.paired_weight * losses["paired"]
        return {"loss": total, **losses}, made

    def judges(self, a: Tensor, b: Tensor, made: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Both pairs and what was generated → losses of D_a and D_b, and their sum ``discriminators``.

        The generators get no gradient.
        """
        fake_a, fake_b = (
            ranks.own_part(pool.query(ranks.gathered(made[f"fake_{name}"]), self.generator))
            for name, pool in self.pools.items()
        )
        # One pass over real and generated images: DistributedDataParallel wants one forward for one backward.
        scores_a, scores_b = self.discriminators_in_training(
            torch.cat([a, fake_a.to(a.dtype)]), torch.cat([b, fake_b.to(b.dtype)])
        )
        count = len(a)
        loss_a = discriminator_loss(scores_a[:count], scores_a[count:])
        loss_b = discriminator_loss(scores_b[:count], scores_b[count:])
        return {"discriminators": loss_a + loss_b, "discriminator_a": loss_a, "discriminator_b": loss_b}

    def state(self) -> dict[str, Any]:
        """Pools and generator, for a checkpoint."""
        return {
            "pools": {name: pool.state() for name, pool in self.pools.items()},
            "generator": self.generator.get_state(),
        }

    def load_state(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Restore what :meth:`state` gave."""
        for name, images in state["pools"].items():
            self.pools[name].load_state(images, device)
        self.generator.set_state(state["generator"])
