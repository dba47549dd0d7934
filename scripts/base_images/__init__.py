"""Versions, builds, checks and smoke-tests the llama.cpp base images."""

from __future__ import annotations

import os

# The reference's matrices are small: OpenBLAS's threads cost more than they give, ten times so on a busy machine.
# It reads this when numpy is first imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
