"""Cross-modality feature fusion: two single-pair branches, and a fusion that their own masks guide.

D. Zhang, G. Huang, Q. Zhang, J. Han, J. Han, Y. Yu, Pattern Recognition 110:107562 (2021), arXiv:2201.02356. A branch
is also, but for its last layer, a generator of the feature transition, so a generator's weights start a branch. Where
the released code leaves a choice: one LeakyReLU slope (0.2) everywhere. The output is logits, as nnU-Net wants.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from dynamic_network_architectures.initialization.weight_init import InitWeights_He
from torch import Tensor, nn
from torch.nn import functional as F

from ctnet_nnunet.architectures.features import decoder_features, encoder_features

Masks = Literal["guided", "residual", "none"]
Pair = Literal["a", "b"]
PAPER_FEATURES = 16
PAPER_LEVELS = 4
PAPER_SLOPE = 0.2
CONVOLUTIONS: dict[int, type[nn.Module]] = {2: nn.Conv2d, 3: nn.Conv3d}
NORMS: dict[int, type[nn.Module]] = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


class Branch(nn.Module):
    """A network of one pair of sequences that gives features at two resolutions, and logits of the finer.

    Attributes:
        widths: Channels of the features at full and at the next coarser resolution.
    """

    widths: tuple[int, int]

    def features(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Image (B, sequences, *patch) → features (B, widths[0], *patch) and (B, widths[1], *coarser)."""
        raise NotImplementedError

    def logits(self, fine: Tensor) -> Tensor:
        """Features at full resolution → logits (B, classes, *patch)."""
        head: nn.Module = self.decoder.seg_layers[0]  # type: ignore[index, union-attr, assignment]
        logits: Tensor = head(fine)
        return logits

    def forward(self, image: Tensor) -> Tensor:
        """Image (B, sequences, *patch) → logits (B, classes, *patch)."""
        return self.logits(self.features(image)[0])


class PaperBranch(Branch):
    """The released code's 3D U-Net: four max-poolings, trilinear upsampling, 16 features at full resolution.

    Args:
        input_channels: Sequences of the pair.
        num_classes: Channels of the logits.
        features: Channels at full resolution; the paper's are 16.
        slope: Of the LeakyReLUs.
    """

    def __init__(
        self, input_channels: int, num_classes: int, features: int = PAPER_FEATURES, slope: float = PAPER_SLOPE
    ) -> None:
        super().__init__()
        widths = [features * 2**level for level in range(PAPER_LEVELS)]
        self.encoder = _PaperEncoder(input_channels, widths, slope)
        self.decoder = _PaperDecoder(widths, num_classes, slope)
        self.widths = (features, features)

    def features(self, image: Tensor) -> tuple[Tensor, Tensor]:
        skips, deepest = self.encoder(image)
        fine, coarse = self.decoder(skips, deepest)
        return fine, coarse


class _PaperEncoder(nn.Module):
    def __init__(self, input_channels: int, widths: Sequence[int], slope: float) -> None:
        super().__init__()
        inputs = [input_channels, *widths[:-1]]
        self.stages = nn.ModuleList(
            nn.Sequential(conv_block(before, width, 3, slope), conv_block(width, width, 3, slope))
            for before, width in zip(inputs, widths, strict=True)
        )
        deepest = widths[-1]
        self.bottleneck = nn.Sequential(
            conv_block(deepest, 2 * deepest, 3, slope), conv_block(2 * deepest, deepest, 3, slope)
        )

    def forward(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        skips: list[Tensor] = []
        features = image
        for stage in self.stages:
            features = stage(F.max_pool3d(features, 2) if skips else features)
            skips.append(features)
        return skips, self.bottleneck(F.max_pool3d(features, 2))


class _PaperDecoder(nn.Module):
    def __init__(self, widths: Sequence[int], num_classes: int, slope: float) -> None:
        super().__init__()
        # Each stage halves its channels beforehand, so that the next concatenation has twice the next skip's.
        outputs = [*(width // 2 for width in reversed(widths[1:])), widths[0]]
        self.stages = nn.ModuleList(
            nn.Sequential(conv_block(2 * width, width, 3, slope), conv_block(width, output, 3, slope))
            for width, output in zip(reversed(widths), outputs, strict=True)
        )
        self.seg_layers = nn.ModuleList([nn.Conv3d(widths[0], num_classes, 1)])

    def forward(self, skips: list[Tensor], deepest: Tensor) -> tuple[Tensor, Tensor]:
        features, coarse = deepest, deepest
        for stage, skip in zip(self.stages, reversed(skips), strict=True):
            coarse = features
            features = stage(torch.cat([upsampled(features, skip.shape[2:]), skip], 1))
        return features, coarse


class PlanBranch(Branch):
    """The plan's own network as a branch; of its segmentation heads the finest alone is kept.

    Args:
        network: PlainConvUNet, ResidualEncoderUNet or CTNet.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.encoder = network.encoder
        self.decoder = network.decoder
        transformer = getattr(network, "transformer", None)
        if transformer is not None:
            self.transformer = transformer
        finest = self.decoder.seg_layers[-1]  # type: ignore[index, union-attr]
        self.decoder.seg_layers = nn.ModuleList([finest])  # type: ignore[union-attr, list-item]
        # The whole, for its own way through the encoder; a tuple keeps it out of the state dict.
        self._network = (network,)
        channels = self.encoder.output_channels  # type: ignore[union-attr]
        self.widths = (channels[0], channels[1])  # type: ignore[index, assignment]

    def features(self, image: Tensor) -> tuple[Tensor, Tensor]:
        *_, coarse, fine = decoder_features(self._network[0], encoder_features(self._network[0], image))
        return fine, coarse


class Fusion(nn.Module):
    """Features of both branches at two resolutions, weighted by the masks of both, → logits.

    Args:
        widths: Of a branch's features.
        num_classes: Channels of masks and logits.
        dimensions: 2 or 3.
        masks: ``guided`` is the paper's; ``residual`` adds the features themselves to each masked copy; ``none``
            leaves the masks out. The last two are for ablation.
        slope: Of the LeakyReLUs.
    """

    def __init__(
        self, widths: tuple[int, int], num_classes: int, dimensions: int, masks: Masks, slope: float
    ) -> None:
        super().__init__()
        fine, coarse = widths
        self.masks = masks
        self.fine = conv_block(2 * fine, fine, dimensions, slope)
        self.coarse = conv_block(2 * coarse, fine, dimensions, slope)
        self.joint = conv_block(2 * fine, fine, dimensions, slope)
        copies = 1 if masks == "none" else num_classes
        self.seg_layers = nn.ModuleList([CONVOLUTIONS[dimensions](copies * fine, num_classes, 1)])

    def forward(self, fine: Tensor, coarse: Tensor, mask: Tensor) -> Tensor:
        """Features of both branches, concatenated, and the sum M of their masks (B, classes, *patch) → logits."""
        full = self.fine(fine)
        half = upsampled(self.coarse(coarse), full.shape[2:])
        fused = self.joint(torch.cat([full, half], 1))
        logits: Tensor = self.seg_layers[0](mask_guided(fused, mask, self.masks))
        return logits


def mask_guided(features: Tensor, mask: Tensor, how: Masks) -> Tensor:
    """Copies of the features, one a class, each times its class's mask: block i is u·Mᵢ.

    Args:
        features: u (B, F, *patch).
        mask: M = P_a + P_b (B, K, *patch), 0 to 2.
        how: ``guided``: (B, K·F, *patch); ``residual``: u·Mᵢ + u likewise; ``none``: u itself.
    """
    if how == "none":
        return features
    copies = features[:, None] * mask[:, :, None].to(features.dtype)
    if how == "residual":
        copies = copies + features[:, None]
    return copies.flatten(1, 2)


class CMFFNet(nn.Module):
    """Two branches, one for each pair of sequences, and their fusion.

    Args:
        branches: Of pair a and of pair b, with equal ``widths``.
        pairs: The input channels of each.
        num_classes: Channels of all logits: classes with the background, or regions.
        dimensions: 2 or 3.
        regions: Masks by sigmoid in place of softmax.
        masks: See :class:`Fusion`.
        slope: Of the fusion's LeakyReLUs.
        fuses_alone: The fusion was trained to decide from one branch (modality dropout), so it does when a pair is
            ``absent``; else the branch that is left decides by its own logits.
        aux: With it the output is the list of fused, a's and b's logits. The state dict has the same keys either way.

    Attributes:
        absent: A pair that no input has; its channels are not looked at.
    """

    def __init__(
        self,
        branches: tuple[Branch, Branch],
        pairs: Sequence[Sequence[int]],
        num_classes: int,
        dimensions: int = 3,
        *,
        regions: bool = False,
        masks: Masks = "guided",
        slope: float = PAPER_SLOPE,
        fuses_alone: bool = False,
        aux: bool = False,
    ) -> None:
        super().__init__()
        self.branch_a, self.branch_b = branches
        self.fusion = Fusion(self.branch_a.widths, num_classes, dimensions, masks, slope)
        self.pairs = tuple(tuple(pair) for pair in pairs)
        self.regions, self.fuses_alone, self.aux = regions, fuses_alone, aux
        self.absent: Pair | None = None

    def split(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Image (B, C, *patch) → the channels of pair a and those of pair b."""
        a, b = self.pairs
        return image[:, list(a)], image[:, list(b)]

    def masks(self, logits: Tensor) -> Tensor:
        """Logits → the probabilities that guide the fusion; gradients flow through them."""
        return logits.sigmoid() if self.regions else logits.softmax(1)

    def forward(self, image: Tensor, present: Tensor | None = None) -> Tensor | list[Tensor]:
        """Image (B, C, *patch) → fused logits (B, K, *patch), or with ``aux`` [fused, a's, b's].

        Args:
            image: All channels.
            present: (B, 2), 1 where the fusion may see a sample's pair; None is everywhere. What is not present
                counts neither as features nor as mask; the other's mask then counts twice.
        """
        if self.absent is not None:
            return self._without(self.absent, image)
        a, b = self.split(image)
        fine_a, coarse_a = self.branch_a.features(a)
        fine_b, coarse_b = self.branch_b.features(b)
        logits_a, logits_b = self.branch_a.logits(fine_a), self.branch_b.logits(fine_b)
        mask_a, mask_b = self.masks(logits_a), self.masks(logits_b)
        if present is not None:
            shape = (-1, *[1] * (image.ndim - 1))
            seen_a, seen_b = (present[:, pair].to(fine_a.dtype).view(shape) for pair in (0, 1))
            fine_a, coarse_a, fine_b, coarse_b = fine_a * seen_a, coarse_a * seen_a, fine_b * seen_b, coarse_b * seen_b
            share = 2 / (seen_a + seen_b)
            mask_a, mask_b = mask_a * (seen_a * share), mask_b * (seen_b * share)
        fused = self.fusion(torch.cat([fine_a, fine_b], 1), torch.cat([coarse_a, coarse_b], 1), mask_a + mask_b)
        return [fused, logits_a, logits_b] if self.aux else fused

    def _without(self, absent: Pair, image: Tensor) -> Tensor:
        a, b = self.split(image)
        branch, own = (self.branch_b, b) if absent == "a" else (self.branch_a, a)
        fine, coarse = branch.features(own)
        logits = branch.logits(fine)
        if not self.fuses_alone:
            return logits
        both = [
            torch.cat([torch.zeros_like(f), f] if absent == "a" else [f, torch.zeros_like(f)], 1)
            for f in (fine, coarse)
        ]
        fused: Tensor = self.fusion(both[0], both[1], 2 * self.masks(logits))
        return fused


class Discriminator(nn.Module):
    """Patch scores: strided 4³ convolutions, no activation behind the first, as in the released code.

    Args:
        input_channels: Sequences of the pair that it judges.
        dimensions: 2 or 3.
        features: Channels of the first convolution; they double at each.
        levels: Convolutions of stride 2 before the last of stride 1; the paper's are 4.
        slope: Of the LeakyReLUs.
    """

    def __init__(
        self,
        input_channels: int,
        dimensions: int = 3,
        features: int = PAPER_FEATURES,
        levels: int = PAPER_LEVELS,
        slope: float = PAPER_SLOPE,
    ) -> None:
        super().__init__()
        convolution, norm = CONVOLUTIONS[dimensions], NORMS[dimensions]
        widths = [features * 2**level for level in range(levels)]
        layers: list[nn.Module] = [convolution(input_channels, widths[0], 4, 2, 1)]
        for before, width in pairwise(widths):
            layers += [convolution(before, width, 4, 2, 1), norm(width), nn.LeakyReLU(slope)]
        self.layers = nn.Sequential(*layers, convolution(widths[-1], 1, 4, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Image (B, sequences, *patch) → scores (B, 1, *patch / 2^levels − 1); 1 is real, 0 generated."""
        scores: Tensor = self.layers(image)
        return scores


def least_patch(levels: int = PAPER_LEVELS) -> int:
    """The shortest edge in voxels for which :class:`Discriminator` gives a score."""
    return int(2 ** (levels + 1))


def conv_block(before: int, after: int, dimensions: int, slope: float) -> nn.Sequential:
    """Convolution 3³ → InstanceNorm without parameters or statistics → LeakyReLU."""
    convolution, norm = CONVOLUTIONS[dimensions], NORMS[dimensions]
    return nn.Sequential(convolution(before, after, 3, padding=1), norm(after), nn.LeakyReLU(slope))


def upsampled(features: Tensor, size: Sequence[int]) -> Tensor:
    """Linear interpolation with aligned corners to a size in voxels."""
    if tuple(features.shape[2:]) == tuple(size):
        return features
    mode = "bilinear" if features.ndim == 4 else "trilinear"
    return F.interpolate(features, size=tuple(size), mode=mode, align_corners=True)


def initialise(module: nn.Module, slope: float = PAPER_SLOPE) -> None:
    """Kaiming's normal initialisation of every convolution for LeakyReLUs of this slope; biases are 0."""
    module.apply(InitWeights_He(slope))
