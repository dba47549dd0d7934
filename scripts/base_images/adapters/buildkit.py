"""Parses BuildKit's progress, from the engine's build stream or from buildx, into typed events.

The engine sends `{"id": "moby.buildkit.trace", "aux": <base64 of moby.buildkit.v1.StatusResponse>}`. The message is
declared here with the field numbers of BuildKit's `api/services/control/control.proto`. With `--progress=rawjson`,
buildx writes the same messages as JSON, with the field names used here.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory, timestamp_pb2

from base_images.errors import BuildError

TRACE = "moby.buildkit.trace"
IMAGE_ID = "moby.image.id"
LOG_TAIL_LINES = 40

LARGEST_LEAP = 10
"""Largest step in percentage points within one CMake project; llama.cpp's largest is 3."""

INNER_LINES = 8
"""More lines than a nested CMake project prints."""

_DISK_FULL = "no space left on device"
_BUILDX_ERROR = "ERROR: "


@dataclass(frozen=True, kw_only=True)
class StepStarted:
    """A step of the build started. `name` is BuildKit's, such as `[build 3/7] RUN …`."""

    step: str
    name: str


@dataclass(frozen=True, kw_only=True)
class StepLog:
    """One line of a step's output."""

    step: str
    line: str


@dataclass(frozen=True, kw_only=True)
class StepFinished:
    """A step ended after `seconds`; a cached step did not run, and a failed step has an `error`.

    `started` is the Unix time of its start, by the engine's clock.
    """

    step: str
    name: str
    seconds: float
    cached: bool
    error: str
    started: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ImageBuilt:
    """The build has finished and the engine has the image."""

    image_id: str


Event = StepStarted | StepLog | StepFinished | ImageBuilt


def _status_response() -> Any:
    """Returns the message class of StatusResponse, with the fields that are used here."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="moby/buildkit/v1/control.proto",
        package="moby.buildkit.v1",
        syntax="proto3",
        dependency=["google/protobuf/timestamp.proto"],
    )

    def message(name: str, *fields: tuple[str, int, Any, str]) -> None:
        added = file.message_type.add(name=name)
        for field, number, kind, type_name in fields:
            repeated = field.endswith("*")
            added.field.add(
                name=field.rstrip("*"),
                number=number,
                type=kind,
                type_name=type_name or None,
                label=kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL,
            )

    timestamp = ".google.protobuf.Timestamp"
    message(
        "Vertex",
        ("digest", 1, kinds.TYPE_STRING, ""),
        ("name", 3, kinds.TYPE_STRING, ""),
        ("cached", 4, kinds.TYPE_BOOL, ""),
        ("started", 5, kinds.TYPE_MESSAGE, timestamp),
        ("completed", 6, kinds.TYPE_MESSAGE, timestamp),
        ("error", 7, kinds.TYPE_STRING, ""),
    )
    message("VertexLog", ("vertex", 1, kinds.TYPE_STRING, ""), ("data", 4, kinds.TYPE_BYTES, ""))
    message(
        "StatusResponse",
        ("vertexes*", 1, kinds.TYPE_MESSAGE, ".moby.buildkit.v1.Vertex"),
        ("logs*", 3, kinds.TYPE_MESSAGE, ".moby.buildkit.v1.VertexLog"),
    )
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(timestamp_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("moby.buildkit.v1.StatusResponse"))


StatusResponse = _status_response()


def events(stream: Iterable[Mapping[str, Any]]) -> Iterator[Event]:
    """Yields the events of a build from the engine's stream of JSON messages.

    Raises:
        BuildError: a step failed; the detail is the tail of its log.
    """
    trace = _Trace()
    for message in stream:
        if "errorDetail" in message:
            raise trace.failure(message["errorDetail"].get("message", ""))
        if message.get("id") == IMAGE_ID:
            yield ImageBuilt(image_id=message["aux"]["ID"])
        elif message.get("id") == TRACE:
            yield from trace.read(StatusResponse.FromString(base64.b64decode(message["aux"])))


def steps_with(word: str, cache: Collection[Mapping[str, Any]]) -> set[str]:
    """Returns the ids of the steps in the engine's build cache that have a word in their command, and of those on top.

    `cache` are the records of `/system/df`.
    """
    # One parent up to API 1.41, several since.
    parents = {record["ID"]: {record.get("Parent"), *(record.get("Parents") or ())} for record in cache}
    found = {record["ID"] for record in cache if word in record.get("Description", "")}
    while more := {step for step, above in parents.items() if above & found} - found:
        found |= more
    return found


class RawProgress:
    """Parses the standard error of `docker buildx … --progress=rawjson`, line by line."""

    def __init__(self) -> None:
        self._trace = _Trace()
        self._messages: list[str] = []

    def read(self, line: str) -> Iterator[Event]:
        """Yields the events of a line; a line that is not JSON is a message of buildx itself."""
        if line.startswith("{"):
            yield from self._trace.read(json_format.Parse(line, StatusResponse(), ignore_unknown_fields=True))
        else:
            self._messages = [*self._messages, line][-LOG_TAIL_LINES:]

    def failure(self) -> BuildError:
        """Returns the error of a failed build."""
        starts = [number for number, line in enumerate(self._messages) if line.startswith(_BUILDX_ERROR)]
        begin = starts[-1] if starts else max(len(self._messages) - 1, 0)
        # The reason can have several lines.
        reason = " ".join(self._messages[begin:]).removeprefix(_BUILDX_ERROR)
        error = self._trace.failure(reason.rstrip("."))
        return error if error.detail else BuildError(str(error), detail="\n".join(self._messages[:begin]))


def is_internal(name: str) -> bool:
    """Returns whether a step is internal to BuildKit; with several targets its name starts with the target."""
    return re.match(r"\[(\S+ )?internal\]", name) is not None


def compile_percentage(line: str) -> int | None:
    """Returns the percentage in a line of CMake's Makefiles, such as `[ 42%] Building …`; None without one."""
    match = re.match(r"\[ *(\d{1,3})%\]", line)
    return int(match[1]) if match else None


@dataclass(frozen=True)
class Compiled:
    """Progress of the compilation in a step.

    Attributes:
        percent: the accepted percentage.
        rival: the last percentage that did not follow from `percent`.
        times: how often in a row `rival` or a percentage close to it was printed.
    """

    percent: int = 0
    rival: int = 0
    times: int = 0


def next_percentage(known: Compiled, percent: int) -> Compiled:
    """Returns the progress after a further line with the percentage `percent`.

    A project's percentage grows in small steps, or restarts when the step compiles a second project. Other values are
    those of a nested project, such as Vulkan's shader compiler with 50, 100, 100; but many of them in a row mean that
    the engine has dropped lines, as it does for fast output.
    """
    if percent <= 1 or 0 <= percent - known.percent <= LARGEST_LEAP:
        return Compiled(percent)
    times = known.times + 1 if abs(percent - known.rival) <= LARGEST_LEAP else 1
    return Compiled(percent) if times > INNER_LINES else Compiled(known.percent, percent, times)


class _Trace:
    """The state of a build, from BuildKit's messages so far."""

    def __init__(self) -> None:
        self._started: set[str] = set()
        self._finished: set[str] = set()
        self._logs: dict[str, _Lines] = {}
        self._failed = ""
        self._failed_name = ""

    def read(self, status: Any) -> Iterator[Event]:
        for vertex in status.vertexes:
            yield from self._read_vertex(vertex)
        for log in status.logs:
            for line in self._logs.setdefault(log.vertex, _Lines()).add(log.data):
                yield StepLog(step=log.vertex, line=line)

    def _read_vertex(self, vertex: Any) -> Iterator[Event]:
        # BuildKit repeats a vertex whenever it changes.
        step = vertex.digest
        started = vertex.started.ToNanoseconds() / 1e9
        if vertex.HasField("started") and step not in self._started:
            self._started.add(step)
            yield StepStarted(step=step, name=vertex.name)
        if vertex.HasField("completed") and step not in self._finished:
            self._finished.add(step)
            # "canceled" is a step that was stopped because another one failed.
            if vertex.error and "context canceled" not in vertex.error:
                self._failed, self._failed_name = step, vertex.name
            yield StepFinished(
                step=step,
                name=vertex.name,
                seconds=vertex.completed.ToNanoseconds() / 1e9 - started,
                cached=vertex.cached,
                error=vertex.error,
                started=started,
            )

    def failure(self, reason: str) -> BuildError:
        """Returns the error, made of the engine's `reason` and the log of the failed step."""
        tail = self._logs[self._failed].tail() if self._failed in self._logs else []
        where = f" in the step {self._failed_name!r}" if self._failed_name else ""
        full = any(_DISK_FULL in line.lower() for line in [reason, *tail])
        what = (
            "the engine's disk is full: free some, such as with `docker system prune`, and run the same command again"
            if full
            else " ".join(reason.split()) or "the engine gave no reason"
        )
        return BuildError(f"The build failed{where}: {what}.", detail="\n".join(tail))


class _Lines:
    """Assembles the lines of a step's log from the pieces that BuildKit sends."""

    def __init__(self) -> None:
        self._rest = b""
        self._tail: list[str] = []

    def add(self, piece: bytes) -> list[str]:
        *whole, self._rest = (self._rest + piece).replace(b"\r\n", b"\n").split(b"\n")
        lines = [line.decode("utf-8", errors="replace").rpartition("\r")[2] for line in whole]
        self._tail = (self._tail + lines)[-LOG_TAIL_LINES:]
        return lines

    def tail(self) -> list[str]:
        rest = [self._rest.decode("utf-8", errors="replace")] if self._rest else []
        return [*self._tail, *rest]
