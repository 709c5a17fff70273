"""Memory of GPUs that torch keeps for itself when nothing needs it any more, which another process may wait for."""

from __future__ import annotations

import gc

import torch


def give_back() -> None:
    """Lets other processes have what training left behind on the GPUs; nothing where none was used."""
    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()
