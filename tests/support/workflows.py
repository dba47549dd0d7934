"""What GitHub makes of the files in `.github/workflows`: which steps it runs, in which order, environment and place.

As much of GitHub's language as those files use, and an error for everything else. Source of the rules:
docs.github.com/en/actions/reference/workflows-and-actions, "Workflow syntax", "Contexts" and "Expressions".
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from base_images import settings

DIRECTORY = settings.ROOT / ".github" / "workflows"
OWN_WORKFLOW = "$/.github/workflows/"
"""How a workflow names another one of the same commit."""

JOB_KEYS = frozenset(
    ("name", "needs", "if", "strategy", "runs-on", "timeout-minutes", "permissions", "env", "outputs", "steps")
)
CALL_KEYS = frozenset(("name", "needs", "if", "strategy", "permissions", "uses", "with"))
STEP_KEYS = frozenset(("id", "name", "if", "env", "run", "uses", "with"))
"""What the walk below understands; any other key would change what GitHub does."""

Values = Mapping[str, Any]


class UnknownExpressionError(Exception):
    """An expression, or a value in it, that this module or the given contexts do not know."""


@dataclass(kw_only=True)
class Step:
    """A step that is to run now. Who runs it says how it ended, before the next one is asked for.

    Attributes:
        job: such as `build` or, in a called workflow, `variants/merge`.
        matrix: the row of the job's matrix.
        runner: the label of the machine.
        run: the lines for the shell; empty when it is an action.
        uses: the action; empty when it is lines.
        inputs: what the action is given.
        environment: what the workflow adds to the machine's own.
        outputs: to be filled with what it wrote to GITHUB_OUTPUT.
        succeeded: to be set to False when it failed.
    """

    job: str
    matrix: Values
    runner: str
    run: str
    uses: str
    inputs: Values
    environment: Mapping[str, str]
    outputs: dict[str, str] = field(default_factory=dict)
    succeeded: bool = True


def load(path: Path) -> dict[str, Any]:
    """Returns a workflow as it is written, `on` and `true` being words."""
    text = path.read_text(encoding="utf-8")
    workflow: dict[str, Any] = yaml.load(text, yaml.BaseLoader)  # noqa: S506 - it makes nothing but strings
    return workflow


def steps(name: str, contexts: Values, *, job: str = "", called_as: str = "") -> Iterator[Step]:
    """Yields the steps that GitHub would run, one machine after another, each when the ones before it have ended.

    Args:
        name: the workflow's file.
        contexts: `github`, `vars`, `secrets`, `inputs`, with every value that the workflow asks for; None for null.
        job: only this one, whose `needs` are then among the contexts.
        called_as: the job that calls the workflow.

    Raises:
        UnknownExpressionError: at the step that has it.
    """
    workflow = load(DIRECTORY / name)
    needs: dict[str, Any] = {}
    for key, one in _in_order(workflow["jobs"]):
        if job in ("", key):
            here = {"needs": needs, **contexts}
            needs[key] = yield from _job(f"{called_as}{key}", one, here, workflow.get("env", {}))


def resolve(text: str, contexts: Values) -> str:
    """Returns the text of a workflow's value with its expressions evaluated.

    Raises:
        UnknownExpressionError: there is something in it that this module does not know.
    """
    return re.sub(r"\$\{\{(.*?)\}\}", lambda match: _as_text(evaluate(match[1], contexts)), text, flags=re.DOTALL)


def evaluate(expression: str, contexts: Values) -> Any:
    """Returns the value of an expression, without its `${{ }}`.

    Raises:
        UnknownExpressionError: there is something in it that this module does not know.
    """
    return _Parser(expression, contexts).value()


def _in_order(jobs: dict[str, Any]) -> list[tuple[str, Any]]:
    """Returns the jobs so that each comes after those that it needs. Nothing else orders them: the last goes first."""
    ordered: dict[str, Any] = {}
    while len(ordered) < len(jobs):
        ready = {
            key: one for key, one in reversed(jobs.items()) if key not in ordered and set(_needed(one)) <= set(ordered)
        }
        assert ready, "jobs need each other in a circle"
        ordered |= ready
    return list(ordered.items())


def _needed(job: dict[str, Any]) -> list[str]:
    needs = job.get("needs", [])
    return [needs] if isinstance(needs, str) else needs


def _job(
    name: str, job: dict[str, Any], contexts: Values, environment: Values
) -> Generator[Step, None, dict[str, Any]]:
    """Yields the steps of a job's machines and returns what `needs` says of it to others."""
    _only(CALL_KEYS if "uses" in job else JOB_KEYS, job)
    for needed in _needed(job):
        if needed not in contexts["needs"]:
            raise UnknownExpressionError(f"needs.{needed}")
    here = {**contexts, "needs": {key: contexts["needs"][key] for key in _needed(job)}}
    succeeded = all(one["result"] == "success" for one in here["needs"].values())
    if not _condition(job.get("if", ""), {**here, _SO_FAR: succeeded}):
        return {"result": "skipped", "outputs": {}}
    results: list[bool] = []
    outputs: dict[str, str] = {}
    for row in _rows(job.get("strategy", {}).get("matrix", {}), here):
        of_row = {**here, "matrix": row}
        if "uses" in job:
            result = yield from _called(name, job, of_row)
        else:
            result, outputs = yield from _machine(name, job, of_row, environment)
        results.append(result)
    return {"result": "success" if all(results) else "failure", "outputs": outputs}


def _called(name: str, job: dict[str, Any], contexts: Values) -> Generator[Step, None, bool]:
    """Yields the steps of a called workflow and returns whether all went well; it sees its inputs and no `needs`."""
    path = job["uses"].removeprefix(OWN_WORKFLOW)
    declared = load(DIRECTORY / path)["on"]["workflow_call"]["inputs"]
    given: dict[str, Any] = {key: resolve(text, contexts) for key, text in job["with"].items()}
    if set(given) != set(declared):
        raise UnknownExpressionError(f"{path} asks for {sorted(declared)} and is given {sorted(given)}")
    given |= {key: given[key] == "true" for key, one in declared.items() if one["type"] == "boolean"}
    succeeded = True
    shared = {key: contexts[key] for key in ("github", "vars", "secrets")}
    for step in steps(path, {**shared, "inputs": given}, called_as=f"{name}/"):
        yield step
        succeeded = succeeded and step.succeeded
    return succeeded


def _machine(
    name: str, job: dict[str, Any], contexts: Values, environment: Values
) -> Generator[Step, None, tuple[bool, dict[str, str]]]:
    """Yields the steps of one machine and returns whether all went well, and the job's outputs."""
    here: dict[str, Any] = {**contexts, "steps": {}}
    succeeded = True
    for step in job["steps"]:
        _only(STEP_KEYS, step)
        if not _condition(step.get("if", ""), {**here, _SO_FAR: succeeded}):
            continue
        added = {**environment, **job.get("env", {}), **step.get("env", {})}
        running = Step(
            job=name,
            matrix=here["matrix"],
            runner=resolve(job["runs-on"], here),
            run=step.get("run", ""),
            uses=step.get("uses", ""),
            inputs={key: resolve(text, here) for key, text in step.get("with", {}).items()},
            environment={key: resolve(text, here) for key, text in added.items()},
        )
        yield running
        succeeded = succeeded and running.succeeded
        if "id" in step:
            here["steps"][step["id"]] = {"outputs": running.outputs}
    said = {key: resolve(text, here) for key, text in job.get("outputs", {}).items()} if succeeded else {}
    return succeeded, said


def _only(known: frozenset[str], found: Values) -> None:
    if unknown := set(found) - known:
        raise UnknownExpressionError(f"the keys {sorted(unknown)}")


def _rows(matrix: Values, contexts: Values) -> list[Values]:
    """Returns the rows of a matrix that is either a list of rows or one list of values."""
    if not matrix:
        return [{}]
    [(axis, values)] = matrix.items()
    if isinstance(values, str):
        values = evaluate(values.removeprefix("${{").removesuffix("}}"), contexts)
    return list(values) if axis == "include" else [{axis: value} for value in values]


def _condition(text: str, contexts: Values) -> bool:
    """Whether an `if` holds; without a function that asks how it went, everything before must have gone well."""
    expression = text.removeprefix("${{").removesuffix("}}")
    if not re.search(r"\b(success|failure|cancelled|always)\(\)", expression):
        expression = f"success() && ({expression})" if expression else "success()"
    return bool(evaluate(expression, contexts))


_SO_FAR = " all went well so far"
"""Where a condition's contexts say it; no workflow can name it."""


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return ""
    if isinstance(value, str | int):
        return str(value)
    raise UnknownExpressionError(f"{value!r} has no text")


_TOKEN = re.compile(r"\s*('(?:[^']|'')*'|\d+|[A-Za-z_][\w-]*|&&|\|\||==|!=|[!().,\[\]])\s*")
_WORDS = {"true": True, "false": False, "null": None}


def _format(text: str, *values: Any) -> str:
    return re.sub(r"\{(\d)\}", lambda found: _as_text(values[int(found[1])]), text)


_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "fromJSON": json.loads,
    "toJSON": lambda value: json.dumps(value, indent=2),
    "format": _format,
    "always": lambda: True,
    "cancelled": lambda: False,
}

Later = Callable[[], Any]
"""A part of an expression: what `&&` and `||` need not know is not asked for."""


class _Parser:
    """Reads one expression, from the loosest operator to the tightest."""

    def __init__(self, expression: str, contexts: Values) -> None:
        self.expression = expression
        self.contexts = contexts
        self.tokens: list[str] = _TOKEN.findall(expression)
        if _TOKEN.sub("", expression):
            raise self.unknown("its characters")

    def unknown(self, what: str) -> UnknownExpressionError:
        return UnknownExpressionError(f"{self.expression.strip()}: {what} is not known here")

    def value(self) -> Any:
        result = self.either()
        if self.tokens:
            raise self.unknown(self.tokens[0])
        return result()

    def take(self, *wanted: str) -> str:
        """Returns the next word if it is one of those, else nothing; without any, the next one."""
        return self.tokens.pop(0) if self.tokens and (not wanted or self.tokens[0] in wanted) else ""

    def expect(self, word: str) -> None:
        if not self.take(word):
            raise self.unknown(f"the lack of {word}")

    def either(self) -> Later:
        left = self.both()
        if not self.take("||"):
            return left
        right = self.either()
        return lambda: left() or right()

    def both(self) -> Later:
        left = self.equality()
        if not self.take("&&"):
            return left
        right = self.both()
        return lambda: left() and right()

    def equality(self) -> Later:
        left = self.negation()
        operator = self.take("==", "!=")
        if not operator:
            return left
        right = self.negation()

        def compare() -> bool:
            texts = left(), right()
            if not all(isinstance(text, str) for text in texts):
                raise self.unknown("a comparison of anything but texts")
            equal: bool = texts[0].lower() == texts[1].lower()
            return equal == (operator == "==")

        return compare

    def negation(self) -> Later:
        if not self.take("!"):
            return self.member()
        negated = self.negation()
        return lambda: not negated()

    def member(self) -> Later:
        result = self.primary()
        while mark := self.take(".", "["):
            if mark == ".":
                result = self.lookup(result, partial(str, self.take()))
            else:
                result = self.lookup(result, self.either())
                self.expect("]")
        return result

    def lookup(self, value: Later, key: Later) -> Later:
        def found() -> Any:
            try:
                return value()[key()]
            except (KeyError, IndexError, TypeError) as error:
                raise self.unknown(repr(key())) from error

        return found

    def primary(self) -> Later:
        word = self.take()
        if word == "(":
            inner = self.either()
            self.expect(")")
            return inner
        if word.startswith("'"):
            return lambda: word[1:-1].replace("''", "'")
        if word.isdigit():
            return lambda: int(word)
        if word in _WORDS:
            return lambda: _WORDS[word]
        if self.take("("):
            return self.call(word)
        if word not in self.contexts:
            raise self.unknown(word or "its end")
        return lambda: self.contexts[word]

    def call(self, name: str) -> Later:
        arguments: list[Later] = []
        while not self.take(")"):
            if arguments:
                self.expect(",")
            arguments.append(self.either())
        if name in _FUNCTIONS:
            return lambda: _FUNCTIONS[name](*(argument() for argument in arguments))
        if name not in ("success", "failure") or _SO_FAR not in self.contexts:
            raise self.unknown(f"{name}()")
        return lambda: self.contexts[_SO_FAR] == (name == "success")
