"""Entry point of ``torchrun … -m ctnet_nnunet.train`` and ``python -m ctnet_nnunet.train``."""

from __future__ import annotations

import os

from ctnet_nnunet.shim_path import VARIABLE, with_shim
from ctnet_nnunet.train.arguments import parse_arguments

if __name__ == "__main__":
    arguments = parse_arguments()
    os.environ[VARIABLE] = with_shim(os.environ.get(VARIABLE))
    # Behind the arguments, because it imports nnU-Net, which takes seconds.
    from ctnet_nnunet.train.run import train

    train(arguments)
