"""A scan without one of its pairs of sequences: the generator's synthesis in its place, or the other pair alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from ctnet_nnunet.architectures.cross_modality import CMFFNet, Pair
from ctnet_nnunet.errors import DataError
from ctnet_nnunet.inference.inputs import Case
from ctnet_nnunet.inference.model import Model
from ctnet_nnunet.inference.synthesis import STAGE_ONE, Synthesiser, load_synthesiser


class MissingPairs:
    """How a model goes on where a pair of sequences is missing.

    Args:
        model: Any; only nnUNetTrainerCMFF's can go on.
        synthesis: A folder of nnUNetTrainerCMFT's, or None.
        device: To generate on.

    Raises:
        DataError: The model itself is of stage 1, or ``synthesis`` is given to one that has no pairs.
        CheckpointError, PlanError: The generators cannot be read, or are of other pairs or plans.
    """

    def __init__(self, model: Model, synthesis: Path | None, device: torch.device) -> None:
        if model.trainer == STAGE_ONE:
            raise DataError(
                f"{model.source}: the first stage of cross-modality learning segments nothing; predict with its "
                "nnUNetTrainerCMFF, or generate with `ctnet synthesize`"
            )
        self.network = model.network if isinstance(model.network, CMFFNet) else None
        if synthesis is not None and self.network is None:
            raise DataError(f"{model.source}: --synthesis is for nnUNetTrainerCMFF, this is {model.trainer}")
        self.names = [str(model.dataset_json["channel_names"][str(number)]) for number in range(model.channels)]
        self.synthesiser: Synthesiser | None = None
        if synthesis is not None:
            self.synthesiser = load_synthesiser(synthesis, device)
            self.synthesiser.check_fits(model)

    @property
    def optional(self) -> tuple[tuple[int, ...], ...]:
        """Groups of channels of which a case may lack one."""
        return () if self.network is None else self.network.pairs

    @property
    def hashes(self) -> Mapping[str, str]:
        """File → SHA-256 of the generators' checkpoint."""
        return {} if self.synthesiser is None else self.synthesiser.model.hashes

    def words(self, case: Case) -> list[str]:
        """What is done about the pair that a case lacks, for its log; nothing where it lacks none."""
        if not case.missing:
            return []
        names = ", ".join(self.names[channel] for channel in case.missing)
        others = ", ".join(name for number, name in enumerate(self.names) if number not in case.missing)
        if self.synthesiser is not None:
            return [f"{names} missing: synthesised from {others} by {self.synthesiser.model.source}; check the result"]
        how = "the fusion decides from" if self.network and self.network.fuses_alone else "its branch alone decides, of"
        return [f"{names} missing: {how} {others}; check the result"]

    @contextmanager
    def bridged(self, case: Case, image: Tensor) -> Iterator[Tensor]:
        """A preprocessed image (C, *grid) as the network gets along with it, inside."""
        if not case.missing or self.network is None:
            yield image
            return
        absent: Pair = "a" if sorted(case.missing) == sorted(self.network.pairs[0]) else "b"
        if self.synthesiser is not None:
            yield self.synthesiser.completed(image, absent)
            return
        self.network.absent = absent
        try:
            yield image
        finally:
            self.network.absent = None
