"""The final validation over several processes: each predicts its share of the cases, rank 0 measures when all have.

Stock meets at barriers, which time out where the shares' work differs. Here nobody waits in a collective: ranks tell
each other through files how far they are (:mod:`ctnet_nnunet.trainers.rank_files`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as stock
from torch.nn.parallel import DistributedDataParallel

from ctnet_nnunet import ranks
from ctnet_nnunet.errors import TrainingError
from ctnet_nnunet.trainers.rank_files import RankFiles

FOLDER = "validation_ranks"


def validate_in_shares(trainer: Any, validate: Callable[[], None]) -> None:
    """Run stock's validation on this rank's share of the cases.

    Args:
        trainer: An nnUNetTrainer in a process group; all of its ranks call this.
        validate: Stock's ``perform_actual_validation``.

    Raises:
        TrainingError: A rank has failed, ended or fallen silent, named; or this one could not write.
    """
    with RankFiles(Path(trainer.output_folder) / FOLDER) as files:
        try:
            with _alone(trainer, files) as share:
                if share or files.rank == 0:
                    validate()
        except SystemExit:
            if files.rank == 0 and (others := files.unfinished()):
                trainer.print_to_log_file(f"final validation: {', '.join(others)} had not finished")
            raise
        except OSError as error:
            raise TrainingError(
                f"{trainer.output_folder}: the final validation could not write ({error}); free disk space or fix the "
                "folder's rights, then repeat it with --val"
            ) from error
        if files.rank == 0:
            files.tell("ended")
        else:
            files.tell("predicted")
            files.wait_for([0], "ended")


@contextmanager
def _alone(trainer: Any, files: RankFiles) -> Iterator[list[str]]:
    """Inside, the trainer knows no other rank, its own cases alone, and waits for the others before it measures.

    The bare network takes the wrapper's place: DistributedDataParallel shares buffers in each forward pass.
    """
    train, validation = trainer.do_split()
    share = validation[files.rank :: ranks.world_size()]
    network, measure = trainer.network, stock.compute_metrics_on_folder

    def measure_all(*arguments: Any, **options: Any) -> Any:
        files.tell("predicted")
        files.wait_for(range(1, ranks.world_size()), "predicted")
        return measure(*arguments, **options)

    trainer.is_ddp, trainer.do_split = False, lambda: (train, share)
    if isinstance(network, DistributedDataParallel):
        trainer.network = network.module
    stock.compute_metrics_on_folder = measure_all
    try:
        yield share
    finally:
        stock.compute_metrics_on_folder = measure
        trainer.is_ddp, trainer.network = True, network
        del trainer.do_split
