"""What talks to the world outside: the container engine, BuildKit, registries, git, programs and downloads."""

from __future__ import annotations

import os

# GitPython reads this when it is imported: whether git is installed shows when it is used, in a sentence.
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
