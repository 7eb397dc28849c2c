"""A trainer of the tests: fold 0 sleeps through its first start as a job, so that a wall time ends in the middle."""

from __future__ import annotations

import os
import time
from typing import Any

from ctnet_nnunet.trainers.ctnet import nnUNetTrainerCTNet


class nnUNetTrainerSlow(nnUNetTrainerCTNet):
    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        if self.fold == 0 and "SLURM_RESTART_COUNT" not in os.environ:
            time.sleep(10)
        return super().train_step(batch)
