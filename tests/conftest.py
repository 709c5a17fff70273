"""What holds for every test: one thread each, no network, and no clock that could fail a slow machine."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from hypothesis import settings

settings.register_profile("leafe", deadline=None, print_blob=True)
settings.load_profile("leafe")
