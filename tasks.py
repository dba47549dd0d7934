"""The front door for people: `invoke --list`. The tasks are in `scripts/base_images/cli/`, one module for each room."""

from __future__ import annotations

import sys
from pathlib import Path

from invoke.collection import Collection
from invoke.exceptions import Exit
from invoke.tasks import Task

sys.path.insert(0, str(Path(__file__).resolve().parent / "scripts"))

from base_images.cli import bench, build, build_shared, contract, doctor, output, recipes, release, smoke

output.guard()

GROUPS = {
    "Build": [build, build_shared, bench],
    "Test": [contract, smoke],
    "Release": [release],
    "Follow upstream": [recipes],
    "This machine": [doctor],
}

namespace = Collection()
listed = ""
for group, rooms in GROUPS.items():
    tasks = [value for room in rooms for value in vars(room).values() if isinstance(value, Task)]
    listed += f"\n{group}:\n"
    for task in tasks:
        namespace.add_task(task)
        listed += f"  {task.name.replace('_', '-'):22}{str(task.__doc__).splitlines()[0]}\n"

if sys.argv[1:] in (["--list"], ["-l"]):  # invoke sorts by name and cannot group; its other forms of --list stay
    with output.kept():
        sys.stdout.write(
            f"{listed.lstrip()}\n`invoke --help TASK` has a task's options, and examples of the main ones.\n"
        )
    raise Exit(code=0)
