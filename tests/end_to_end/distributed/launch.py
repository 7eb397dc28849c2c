"""``ctnet_nnunet.train`` as torchrun starts it, in warmed-up processes: each rank its own environment and limits.

What torchrun's agent does beside it is done here, too: when one of them fails, the others are ended.
"""

from __future__ import annotations

import functools
import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch.distributed as dist

from tests.conftest import NnunetEnv
from tests.end_to_end.commands import PRELOADED, Finished, _child, _text, environment

SECONDS = 240


def run_ranks(
    env: NnunetEnv,
    *words: str | Path | int,
    world: int = 2,
    by_rank: Mapping[int, Mapping[str, str]] | None = None,
    before: Callable[[int], None] | None = None,
    patience: float = 20.0,
) -> list[Finished]:
    """Run the entry point in ``world`` processes.

    Args:
        env: Of all ranks.
        words: The command's arguments.
        world: Processes.
        by_rank: Rank → what its environment has in addition.
        before: Picklable; called in each process with its rank, before the entry point.
        patience: Seconds that the others get behind the first that failed.
    """
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(PRELOADED)
    command = [str(word) for word in words]
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # as the agent has one
    with TemporaryDirectory() as folder:
        files = [(Path(folder) / f"{rank}.out", Path(folder) / f"{rank}.err") for rank in range(world)]
        processes: list[Any] = []
        for rank in range(world):
            extra = {**_torchruns_variables(rank, world, store.port), **(by_rank or {}).get(rank, {})}
            work = functools.partial(_train, command, rank, before)
            processes.append(server.Process(target=_child, args=(work, environment(env, **extra), *files[rank])))
            processes[-1].start()
        _wait(processes, patience)
        return [
            Finished(" ".join(command), process.exitcode, *map(_text, streams))
            for process, streams in zip(processes, files, strict=True)
        ]


def _torchruns_variables(rank: int, world: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test",
        "TORCHELASTIC_RESTART_COUNT": "0", "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip


def _wait(processes: Sequence[Any], patience: float) -> None:
    deadline, failed = time.monotonic() + SECONDS, False
    while any(process.is_alive() for process in processes) and time.monotonic() < deadline:
        if not failed and any(process.exitcode for process in processes):
            failed, deadline = True, time.monotonic() + patience
        time.sleep(0.05)
    for process in processes:
        if process.is_alive():
            process.kill()
        process.join()


def _train(command: Sequence[str], rank: int, before: Callable[[int], None] | None) -> None:
    from ctnet_nnunet.train.arguments import parse_arguments
    from ctnet_nnunet.train.run import train

    if before is not None:
        before(rank)
    train(parse_arguments(command))
