"""How the processes of a group find each other and nobody else: those of an attempt before are still in the store.

torchrun keeps one store through all its restarts, and what gloo and nccl have left there sends a process that is
started anew to an address where nobody listens any more: it waits for ever. So each attempt gets a name of its own,
under which it keeps its entries. torchrun's count of restarts cannot be it: it differs between machines.
"""

from __future__ import annotations

import json
import time
import uuid

from torch.distributed import Store

from ctnet_nnunet.errors import SetupError

MEETING_SECONDS = 1800.0
POLL_SECONDS = 0.05


def name_of_attempt(store: Store, rank: int, world: int) -> str:
    """Meet the others; gives a name that all processes of this attempt have, and no process before.

    Every process leaves a token that is new. Rank 0 proposes a name for the tokens it sees; whoever finds its own among
    them agrees. When all have agreed to the same proposal it holds; when a token was an old one, its rank leaves
    another, and rank 0 proposes again.

    Raises:
        SetupError: Not all came.
    """
    token, agreed, tokens = uuid.uuid4().hex, "", [""]
    store.set(f"ctnet/token/{rank}", token)
    deadline = time.monotonic() + MEETING_SECONDS
    while time.monotonic() < deadline:
        if rank == 0:
            seen = [_read(store, f"ctnet/token/{other}") for other in range(world)]
            if all(seen) and seen != tokens:
                tokens = seen
                store.set("ctnet/proposal", json.dumps({"name": uuid.uuid4().hex, "tokens": tokens}))
        proposal = json.loads(_read(store, "ctnet/proposal") or '{"name": "", "tokens": []}')
        if proposal["tokens"][rank : rank + 1] == [token]:
            agreed = proposal["name"]
            store.set(f"ctnet/agreed/{rank}", agreed)
        if agreed and rank == 0 and all(_read(store, f"ctnet/agreed/{other}") == agreed for other in range(world)):
            store.set(f"ctnet/holds/{agreed}", "yes")
        if agreed and store.check([f"ctnet/holds/{agreed}"]):
            return agreed
        time.sleep(POLL_SECONDS)
    raise SetupError(
        f"rank {rank}: not all of the {world} processes came within {MEETING_SECONDS / 60:.0f} minutes; look at what "
        "the others said, and whether all machines run the same torchrun line"
    )


def _read(store: Store, key: str) -> str:
    """An entry, empty while there is none: the store itself would wait for it."""
    return store.get(key).decode() if store.check([key]) else ""
