"""Shows several builds while they run: on a terminal a line for each that changes, elsewhere a line now and then."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.live import Live
from rich.table import Table

from base_images.build.many import State, Work
from base_images.cli import views

NEWS_SECONDS = 10.0
"""Without a terminal: the least time between two lines about one build that goes on."""

SIGN_OF_LIFE_SECONDS = 60.0
"""The longest time between them."""

_RUNNING = (State.FETCHING, State.BUILDING)


class Board:
    """Shows builds; use it in a `with` block."""

    def __init__(self, how: views.Mode, works: Sequence[Work]) -> None:
        self._how = how
        self._works = works
        self._began = time.monotonic()
        self._console = views.console()
        self._live = Live(get_renderable=self._table, console=self._console, transient=True)
        self._told: dict[str, tuple[float, State, str, int | None]] = {}
        self._over = threading.Event()
        self._teller = threading.Thread(target=self._tell_until_over, daemon=True)

    def __enter__(self) -> Self:
        if self._how is views.Mode.LIVE:
            self._live.start(refresh=True)
        elif self._how is views.Mode.PLAIN:
            self._teller.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.stop()
        self._over.set()
        if self._teller.is_alive():
            self._teller.join()
            self.tell(time.monotonic())

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 1), expand=True)
        for ratio, justify in ((None, "left"), (1, "left"), (None, "right"), (None, "right"), (None, "right")):
            table.add_column(ratio=ratio, justify=justify, no_wrap=True, overflow="ellipsis")  # type: ignore[arg-type]
        for one in self._works:
            moment = one.track.moment()
            doing = one.state in _RUNNING
            why = one.why if one.state is State.WAITING else ""
            what = moment.step if doing and moment.step else f"{one.state} {why}"
            percent = f"{moment.percent} %" if doing and moment.percent is not None else ""
            left = f"{clock(moment.left)} left" if doing and moment.left is not None else ""
            took = clock(one.elapsed) if one.elapsed else ""
            table.add_row(*map(views.styled, (one.variant.name, views.short(what, 200), percent, took, left)))
        return table

    def _tell_until_over(self) -> None:
        while not self._over.wait(1):
            self.tell(time.monotonic())

    def tell(self, now: float) -> None:
        """Prints a line for each build that has news at the time `now`."""
        for one in self._works:
            moment = one.track.moment()
            running = one.state in _RUNNING
            news = (one.state, moment.step, None if moment.percent is None else moment.percent // views.PLAIN_PERCENT)
            when, *before = self._told.get(one.variant.name, (self._began, State.WAITING, "", None))
            changed = tuple(before) != news and now - when >= NEWS_SECONDS
            if one.state is before[0] and not (running and (changed or now - when >= SIGN_OF_LIFE_SECONDS)):
                continue
            self._told[one.variant.name] = (now, *news)
            words = [one.why if one.state is State.WAITING else ""]
            if running:
                words = [
                    f"{moment.percent} %" if moment.percent is not None else "",
                    f"{clock(moment.left)} left" if moment.left is not None else "",
                    views.short(moment.step, views.STEP_NAME_WIDTH),
                ]
            line = "  ".join(filter(None, (f"{one.variant.name}: {one.state}", *words)))
            self._console.print(views.styled(f"{now - self._began:7.1f} s  {line}"), soft_wrap=True)


def clock(seconds: float) -> str:
    """Returns a duration as `1:23` minutes and seconds, or `1:02:03` with hours."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
