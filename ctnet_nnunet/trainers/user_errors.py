"""User errors under the stock commands: one line and exit status 2 instead of a traceback."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar

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
            sys.stdout.flush()
            print(f"ctnet: error: {error}", file=sys.stderr, flush=True)
            raise SystemExit(error.exit_status) from error

    return wrapper  # type: ignore[return-value]
