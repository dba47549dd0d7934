"""What tasks share: errors as one sentence with an exit code, the loop over variants, registry changes, a question."""

from __future__ import annotations

import errno
import functools
import inspect
import math
import signal
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from invoke.exceptions import Exit
from invoke.tasks import task

from base_images import variants
from base_images.cli import github, output
from base_images.errors import BaseImagesError, UsageError
from base_images.settings import ROOT

if TYPE_CHECKING:
    from base_images.release.actions import Action

_MACHINE_REFUSES = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS})
"""A full disk, or a path that may not be written: the user has to fix these, wherever they happen."""

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as in shells."""

RECORD_DIRECTORY = "build/smoke"
RELEASE_DIRECTORY = "build/release"


def command(*arguments: Any, **options: Any) -> Callable[[Callable[..., None]], Any]:
    """Returns a decorator like invoke's `task`, with which our errors end as one sentence and their exit code."""

    def decorate(function: Callable[..., None]) -> Any:
        signature = inspect.signature(function)
        kinds = {name: type(one.default) for name, one in signature.parameters.items()}
        numbers = {name: kind for name, kind in kinds.items() if kind in (int, float)}

        @functools.wraps(function)
        def run(*values: Any, **named: Any) -> None:
            # CI cancels with SIGTERM: clean up as after Ctrl-C.
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            try:
                with output.kept():
                    read = {name: _number(name, named[name], kind) for name, kind in numbers.items() if name in named}
                    function(*values, **named | read)
            except BaseImagesError as error:
                from base_images.cli import views

                raise Exit(views.failure(error), error.exit_code) from error
            except KeyboardInterrupt as error:
                raise Exit(
                    "Interrupted: nothing is left running; the same command starts again.", INTERRUPTED
                ) from error
            except OSError as error:
                if error.errno not in _MACHINE_REFUSES:
                    raise
                from base_images.cli import views

                where = f"{error.filename}: " if error.filename else ""
                told = BaseImagesError(f"{where}{error.strerror}: fix that and run the same command again.")
                raise Exit(views.failure(told), told.exit_code) from error

        # invoke would convert numbers itself, and end with a traceback where it cannot.
        as_text = [
            one.replace(default=f"{one.default:g}") if name in numbers else one
            for name, one in signature.parameters.items()
        ]
        run.__signature__ = signature.replace(parameters=as_text)  # type: ignore[attr-defined]
        return task(*arguments, **options)(run)

    return decorate


def _number(option: str, text: object, kind: type) -> Any:
    try:
        number = kind(text)
    except ValueError:
        number = math.nan
    if math.isfinite(number):
        return number
    what = "a whole number" if kind is int else "a number"
    raise UsageError(f"--{option.replace('_', '-')} {text} is not {what}.")


def for_each_variant(chosen: list[variants.Variant], action: Callable[[variants.Variant], None]) -> None:
    """Runs an action for every variant, whether or not it fails for another, and names those that it failed for.

    Raises:
        Exit: it failed for one of several. An error of a single variant is raised as it is.
    """
    from base_images.cli import views

    if len(chosen) == 1:
        action(chosen[0])
        return
    failed = []
    for variant in chosen:
        try:
            action(variant)
        except (BaseImagesError, Exit) as error:
            failed.append(variant.name)
            if isinstance(error, BaseImagesError):
                views.complain(f"{variant.name}: {views.failure(error)}")
    if failed:
        done = ", ".join(variant.name for variant in chosen if variant.name not in failed) or "none"
        raise Exit(f"error: failed: {', '.join(failed)} (see above); done: {done}.", 1)


def conclude(writes: Iterable[Callable[[], object]], *, ok: bool) -> None:
    """Writes the files of a verdict that has been printed, every one that can be written.

    Raises:
        Exit: the verdict is a failure: code 1, or a file cannot be written.
    """
    from base_images.cli import views

    code = 0 if ok else 1
    for write in writes:
        try:
            write()
        except UsageError as error:
            views.complain(views.failure(error))
            code = code or error.exit_code
    if code:
        raise Exit(code=code)


def change_registry(
    name: str, chosen: list[variants.Variant], change: Callable[[variants.Variant], Iterable[Action]]
) -> None:
    """Changes the registry for every variant, prints each action, and appends all of them to a file.

    Raises:
        Exit: an action was refused or failed, or waits for another platform.
    """
    from base_images.cli import views
    from base_images.release import actions

    done: list[Action] = []

    def change_one(variant: variants.Variant) -> None:
        for action in actions.with_failure(variant, name, change):
            done.append(action)
            views.print_action(action)

    try:
        for_each_variant(chosen, change_one)
    finally:
        kept = record_actions(name, done)
    if not all(action.ok for action in done):
        failed = ", ".join(dict.fromkeys(action.variant for action in done if not action.ok))
        raise Exit(f"error: {name}: not done for {failed}: see above.", 1)
    if not kept:
        raise Exit(code=UsageError.exit_code)


def record_actions(name: str, done: list[Action]) -> bool:
    """Appends what a command did to a registry to its file, and to the summary of a job on GitHub.

    Returns whether the file could be written; why not is printed.
    """
    from base_images.cli import views
    from base_images.release import actions

    try:
        actions.write(name, done, ROOT / RELEASE_DIRECTORY)
        kept = True
    except UsageError as error:
        views.complain(views.failure(error))
        kept = False
    columns = ["outcome", "what", "variant", "target", "digest", "reason"]
    github.summarise_table(name, columns, [[getattr(action, column) for column in columns] for action in done])
    return kept


def agree(question: str) -> None:
    """Asks a person on the terminal.

    Raises:
        Exit: the answer is not yes.
        UsageError: there is no terminal.
    """
    if not sys.stdin.isatty():
        raise UsageError("There is no terminal to ask on, so nothing was done: run it with --yes, or with --dry-run.")
    try:
        answer = input(f"{question} [y/N] ")
    except EOFError:
        answer = ""
    if answer.strip().lower() not in {"y", "yes"}:
        raise Exit("Nothing was done.", 1)
