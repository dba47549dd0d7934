"""The command line: one module of tasks per room, and how results are shown."""

from __future__ import annotations

import io
import sys

for _stream in (sys.stdout, sys.stderr):
    if isinstance(_stream, io.TextIOWrapper):
        # A locale, PYTHONIOENCODING or a file's name may have characters that the other lacks: no reason to end.
        _stream.reconfigure(errors="replace")
