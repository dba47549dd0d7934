"""Builds several variants at once, as many as the engine's machine bears, and ends all of them on Ctrl-C."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path

from base_images.adapters import buildkit
from base_images.adapters.engine import Engine
from base_images.build import local, track
from base_images.build.local import Built, Prepared
from base_images.errors import BaseImagesError, BuildError, EngineError
from base_images.variants import GIGABYTE, Variant

LOGS = "build/logs"
"""Where the checkout keeps each variant's log and what its past builds took."""

CORES = 2
"""Cores for one build: where there are fewer, the compilers of two builds would only wait for each other."""

CORE_MEMORY = GIGABYTE
"""Memory for each core in each build: a build compiles with one process per core."""

CANCEL_SECONDS = 60
_PAUSE = 0.1


class State(StrEnum):
    """State of one build, in words for people."""

    WAITING = "waiting"
    FETCHING = "base images"
    BUILDING = "building"
    BUILT = "built"
    FAILED = "failed"
    ENDED = "ended"
    ENDING = "asked to end"


@dataclass(kw_only=True)
class Work:
    """One variant to build.

    Attributes:
        log: the file with everything that its steps printed.
        build: what builds it.
        why: what it waits for.
        built: what was built; with its operations there are two.
        size: bytes of the image, as the engine reports them.
        seconds: how long it took, without the time that it waited.
        since: when the part that now runs began, by the monotonic clock; 0 while none runs.
        build_id: the engine's name of the build that runs; empty for none.
    """

    variant: Variant
    log: Path
    track: track.Track
    build: Callable[[], object] = tuple
    state: State = State.WAITING
    why: str = ""
    built: tuple[Built, ...] = ()
    error: BaseException | None = None
    size: int = 0
    seconds: float = 0
    since: float = 0
    build_id: str = ""

    @property
    def elapsed(self) -> float:
        """How long it has taken by now."""
        return self.seconds + (time.monotonic() - self.since if self.since else 0)


def at_once(cores: int, memory: int) -> int:
    """Returns how many builds an engine's machine bears at once, given its cores and its memory in bytes.

    Each compiles with as many processes as there are cores: CORES cores for each build, and CORE_MEMORY for each of
    its processes.
    """
    return max(1, min(cores // CORES, memory // (cores * CORE_MEMORY)))


def work(variant: Variant, root: Path) -> Work:
    """Returns the work for a variant, whose estimates follow from the past builds in this checkout."""
    log = root / LOGS / f"{variant.name}.log"
    return Work(variant=variant, log=log, track=track.Track(track.past(log.with_suffix(".json"))))


@contextlib.contextmanager
def recorded(one: Work) -> Iterator[Callable[[buildkit.Event], None]]:
    """Yields what takes the events of a build: they go to its track and its log. A build that ends well is remembered.

    Where the log cannot be written there is none, and the build goes on.
    """
    with contextlib.ExitStack() as stack:
        log = None
        with contextlib.suppress(OSError):
            one.log.parent.mkdir(parents=True, exist_ok=True)
            stream = stack.enter_context(one.log.open("w", encoding="utf-8", errors="backslashreplace", buffering=1))
            log = track.Log(stream)

        def take(event: buildkit.Event) -> None:
            one.track.event(event)
            if log:
                log.event(event)

        yield take
        record = one.log.with_suffix(".json")
        with contextlib.suppress(BaseImagesError):
            track.remember(record, track.past(record), one.track.run())


def build(
    engine: Engine,
    one: Work,
    prepared: Prepared,
    *,
    root: Path,
    receivers: Sequence[Callable[[buildkit.Event], None]],
) -> None:
    """Builds one image of a work; `receivers` take its events.

    Raises:
        BuildError: a step failed.
        EngineError: the engine stopped answering.
    """
    if not one.built:
        one.track.begin()
    one.build_id = uuid.uuid4().hex

    def tell(event: buildkit.Event) -> None:
        for receive in receivers:
            receive(event)

    built = local.build(engine, prepared, root=root, on_event=tell, build_id=one.build_id)
    one.size = one.size or engine.image(built.image_id).size
    one.built += (built,)


def failure(one: Work) -> BaseException:
    """Returns the error of a failed work; that of a failed build names its log."""
    error = one.error or EngineError(f"{one.variant.name} was not built.")
    if isinstance(error, BuildError) and one.log.is_file():
        return BuildError(f"{error} Its log: {one.log}", detail=error.detail)
    return error


def run(
    works: Sequence[Work],
    *,
    jobs: int,
    prepare: Callable[[Work], object],
    cancel: Callable[[str], None],
) -> None:
    """Builds all, `jobs` at once, whether or not one fails; each work then has its outcome.

    The first is built alone: it fills the compiler's cache with what all variants share, which the others would
    otherwise compile at the same time.

    Args:
        works: what to build.
        jobs: how many builds run at once.
        prepare: fetches the bases of a work and sets its `build`; for one work after the other, in this thread.
        cancel: ends a build of the engine by its `build_id`.

    Raises:
        KeyboardInterrupt: after Ctrl-C, when all builds have ended.
    """
    line = _Line(works)
    threads = [threading.Thread(target=line.build_ready, daemon=True) for _ in range(min(jobs, len(works)))]
    try:
        for thread in threads:
            thread.start()
        for one in works:
            if attempt(one, State.FETCHING, partial(prepare, one), State.WAITING):
                line.ready.put(one)
            elif one is works[0]:
                line.open()
        line.close()
        while any(thread.is_alive() for thread in threads):
            time.sleep(_PAUSE)
    except BaseException:
        line.stop.set()
        line.open()
        line.close()
        _end(works, threads, cancel)
        raise


class _Line:
    """What threads take works from: the first, and the others once that has ended."""

    def __init__(self, works: Sequence[Work]) -> None:
        self.ready: queue.Queue[Work | None] = queue.Queue()
        self.stop = threading.Event()
        self._first, *self._others = works
        self._open = threading.Event()
        for one in self._others:
            one.why = f"for {self._first.variant.name}, which fills the compiler's cache"

    def open(self) -> None:
        """Lets the others begin."""
        for one in self._others:
            one.why = ""
        self._open.set()

    def close(self) -> None:
        """Lets the threads end when nothing is ready any more."""
        self.ready.put(None)

    def build_ready(self) -> None:
        """Builds what is ready, until that is all."""
        while one := self.ready.get():
            if one is not self._first:
                self._open.wait()
            attempt(one, State.BUILDING, one.build, State.BUILT, self.stop)
            self.open()
        self.ready.put(None)  # for the next thread


def attempt(
    one: Work, state: State, action: Callable[[], object], then: State, stop: threading.Event | None = None
) -> bool:
    """Does one part of a work, in a state, and returns whether that succeeded; why not is kept in the work."""
    if stop and stop.is_set():
        one.state = State.ENDED
        return False
    one.state, one.since = state, time.monotonic()
    try:
        action()
    except Exception as error:  # noqa: BLE001 - the others go on; the caller raises what no user caused
        one.error, one.state = error, State.ENDED if stop and stop.is_set() else State.FAILED
    else:
        one.state = then
    finally:
        one.seconds, one.since = one.elapsed, 0
    return one.state is then


def _end(works: Sequence[Work], threads: Sequence[threading.Thread], cancel: Callable[[str], None]) -> None:
    """Cancels all builds until their threads have ended: an engine does not know a build that was just sent."""
    deadline = time.monotonic() + CANCEL_SECONDS
    while any(thread.is_alive() for thread in threads) and time.monotonic() < deadline:
        for one in works:
            if one.state is State.BUILDING and one.build_id:
                with contextlib.suppress(EngineError):
                    cancel(one.build_id)
        time.sleep(_PAUSE)
    for one in works:
        if one.state not in (State.BUILT, State.FAILED):
            one.state = State.ENDING if one.since else State.ENDED
