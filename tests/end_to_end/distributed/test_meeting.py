"""Processes of an attempt meet each other and nobody from before, whoever comes first, and however often."""

from __future__ import annotations

import random
import threading
import time

import pytest
import torch.distributed as dist

from ctnet_nnunet.errors import SetupError
from ctnet_nnunet.train import meeting


def attempt(store: dist.Store, world: int, delays: list[float]) -> list[str]:
    """Names that threads in the roles of processes get, each of which comes a little later."""
    names = [""] * world

    def come(rank: int) -> None:
        time.sleep(delays[rank])
        names[rank] = meeting.name_of_attempt(store, rank, world)

    threads = [threading.Thread(target=come, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return names


def test_each_attempt_has_a_name_of_its_own() -> None:
    store, rng, world, before = dist.HashStore(), random.Random(0), 3, set[str]()
    for _ in range(12):
        names = attempt(store, world, [rng.uniform(0, 0.2) for _ in range(world)])
        assert len(set(names)) == 1 and names[0]
        assert names[0] not in before
        before.add(names[0])


def test_tokens_and_agreements_of_a_killed_attempt_are_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    store = dist.HashStore()
    monkeypatch.setattr(meeting, "MEETING_SECONDS", 0.3)
    with pytest.raises(SetupError, match="rank 1: not all of the 2 processes came"):
        meeting.name_of_attempt(store, 1, 2)  # it has left a token; rank 0 was killed
    monkeypatch.setattr(meeting, "MEETING_SECONDS", 20.0)
    first, second = attempt(store, 2, [0.0, 0.3])
    assert first == second
