"""What is measured, what is aimed at, and the bump that is measured. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from base_images.settings import Pin


class Side(StrEnum):
    """Whose image it is."""

    OURS = "ours"
    UPSTREAM = "upstream"


class Part(StrEnum):
    """What `--only` chooses, in the order in which it is measured."""

    COLD = "cold"
    NOTHING = "nothing"
    SERVER = "server"
    HEADER = "header"
    INNER_HEADER = "inner-header"
    BUMP = "bump"
    SIZE = "size"
    START = "start"
    SPEED = "speed"


BUILDS = (Part.COLD, Part.NOTHING, Part.SERVER, Part.HEADER, Part.INNER_HEADER, Part.BUMP)
"""The parts that build."""


@dataclass(frozen=True, kw_only=True)
class Edit:
    """A change of a file of llama.cpp: a line at its end, with a name that no compiler's cache has seen."""

    file: str
    line: str


EDITS = {
    Part.SERVER: Edit(file="tools/server/server.cpp", line="int {name}() {{ return 1; }}"),
    # Declarations of C and C++; nearly every file includes the first header, less than half of them the second.
    Part.HEADER: Edit(file="ggml/include/ggml.h", line="struct {name};"),
    Part.INNER_HEADER: Edit(file="ggml/src/ggml-impl.h", line="struct {name};"),
}


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A goal for the cpu image: of ours / upstream's, or with `own` of our seconds."""

    limit: float
    own: bool = False
    at_least: bool = False

    def met(self, value: float) -> bool:
        """Returns whether a value is within the limit."""
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.limit:g}{' s' if self.own else ''}"


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One measured value.

    Attributes:
        unit: `s`, `bytes`, `tokens/s`, or empty for a count.
        clients, cpus: of a rate; `cpus` is 0 without a limit.
    """

    name: str
    title: str
    part: Part
    unit: str
    goal: Goal | None = None
    clients: int = 0
    cpus: int = 0


METRICS = (
    Metric(name="cold", title="Cold build", part=Part.COLD, unit="s", goal=Goal(limit=0.85)),
    Metric(name="nothing", title="Nothing changed", part=Part.NOTHING, unit="s", goal=Goal(limit=5, own=True)),
    Metric(name="server", title="One server file changed", part=Part.SERVER, unit="s", goal=Goal(limit=0.05)),
    Metric(name="header", title="ggml.h changed", part=Part.HEADER, unit="s", goal=Goal(limit=0.5)),
    Metric(name="inner-header", title="ggml-impl.h changed", part=Part.INNER_HEADER, unit="s", goal=Goal(limit=0.5)),
    Metric(name="bump", title="Next llama.cpp", part=Part.BUMP, unit="s", goal=Goal(limit=0.7)),
    Metric(name="disk", title="Added to the base, on disk", part=Part.SIZE, unit="bytes", goal=Goal(limit=0.08)),
    Metric(name="compressed", title="Added to the base, compressed", part=Part.SIZE, unit="bytes"),
    Metric(name="layers", title="Layers on the base", part=Part.SIZE, unit=""),
    Metric(name="files", title="Files in them", part=Part.SIZE, unit=""),
    Metric(name="update", title="Pulled for the next llama.cpp", part=Part.SIZE, unit="bytes"),
    Metric(name="first-token", title="docker run to first token", part=Part.START, unit="s", goal=Goal(limit=1)),
    Metric(name="memory", title="Idle memory", part=Part.START, unit="bytes"),
    *(
        Metric(
            name=f"rate-{clients}{'-cpus-1' if cpus else ''}",
            title=f"{clients} client{'s' * (clients > 1)}{', --cpus 1' if cpus else ''}",
            part=Part.SPEED,
            unit="tokens/s",
            goal=Goal(limit=2, at_least=True) if cpus else None,
            clients=clients,
            cpus=cpus,
        )
        for cpus in (0, 1)
        for clients in (1, 8)
    ),
)

NEXT = Pin(
    repository="https://github.com/ggml-org/llama.cpp",
    tag="b11312",
    commit="0c1e57098bba43ac29e6e3b677cdceebdd22334f",
    sdist="llama-cpp-python==0.3.36",
    sdist_sha256="832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e",
)
"""What the pin is bumped to. It stays, so that measurements of different days are of the same bump."""
