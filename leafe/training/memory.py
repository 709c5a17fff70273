"""GPU memory that torch keeps after use and that another process may need."""

from __future__ import annotations

import gc

import torch


def give_back() -> None:
    """Frees the GPU memory that training left reserved, for other processes; does nothing if no GPU was used."""
    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()
