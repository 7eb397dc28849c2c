"""User errors under the stock commands: one line and exit status 2 instead of a traceback."""

from __future__ import annotations

import functools
import hashlib
import socket
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from ctnet_nnunet import ranks
from ctnet_nnunet.errors import CTNetError

Method = TypeVar("Method", bound=Callable[..., Any])


def reports_user_errors(method: Method) -> Method:
    """Wrap a trainer's entry point: a CTNetError is printed to stderr and ends the process with its exit status.

    ``functools.wraps`` keeps the signature, on which nnU-Net's constructor reflects.
    """

    @functools.wraps(method)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except CTNetError as error:
            if _is_first_to_say(str(error)):
                named = ranks.rank() == 0 or str(error).startswith("rank ")
                where = "" if named else f"rank {ranks.rank()} on {socket.gethostname()}: "
                sys.stdout.flush()
                print(f"ctnet: error: {where}{error}", file=sys.stderr, flush=True)
            raise SystemExit(error.exit_status) from error

    return wrapper  # type: ignore[return-value]


def _is_first_to_say(text: str) -> bool:
    """Whether no other rank has said so: what is wrong with a plan is wrong in every process."""
    if not ranks.in_group():
        return True
    try:
        store = dist.distributed_c10d._get_default_store()
        return int(store.add(f"ctnet/error/{hashlib.sha256(text.encode()).hexdigest()}", 1)) == 1
    except RuntimeError:  # whoever holds the store has ended
        return True
