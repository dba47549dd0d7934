"""The front door for people: `invoke --list`. The tasks are in `scripts/base_images/cli/`, one module for each room."""

from __future__ import annotations

import sys
from pathlib import Path

from invoke.collection import Collection
from invoke.tasks import Task

sys.path.insert(0, str(Path(__file__).resolve().parent / "scripts"))

from base_images.cli import build, contract, doctor, recipes, release, smoke

namespace = Collection()
for room in (build, contract, doctor, recipes, release, smoke):
    for task in vars(room).values():
        if isinstance(task, Task):
            namespace.add_task(task)
