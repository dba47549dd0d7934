"""Which steps GitHub runs of the files in `.github/workflows`: their order, environment and runner.

Implements as much of GitHub's language as those files use, and raises an error for everything else. Source of the
rules: docs.github.com/en/actions/reference/workflows-and-actions, "Workflow syntax", "Contexts" and "Expressions".
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from base_images import settings

DIRECTORY = settings.ROOT / ".github" / "workflows"
OWN_WORKFLOW = "$/.github/workflows/"
"""Prefix of a called workflow of the same commit."""

JOB_KEYS = frozenset(
    "name needs if strategy runs-on environment timeout-minutes permissions env outputs steps".split()  # noqa: SIM905
)
CALL_KEYS = frozenset(("name", "needs", "if", "strategy", "permissions", "uses", "with"))
STEP_KEYS = frozenset(("id", "name", "if", "env", "run", "uses", "with", "continue-on-error", "timeout-minutes"))
"""The keys that are handled below; any other one would change what GitHub does."""

Values = Mapping[str, Any]


class UnknownExpressionError(Exception):
    """An expression, a value or a key that this module or the given contexts do not know."""


@dataclass(kw_only=True)
class Step:
    """A step that is to run now. Its caller sets the result before asking for the next step.

    Attributes:
        job: such as `build` or, in a called workflow, `variants/merge`.
        runner: the label of the runner.
        run: the shell's lines; empty for an action.
        uses: the action; empty for shell lines.
        inputs: the action's inputs.
        environment: the variables that the workflow adds to the runner's own.
        tolerated: whether the job goes on when the step fails.
        outputs: set by the caller to what the step wrote to GITHUB_OUTPUT.
        succeeded: set by the caller to False when the step failed.
    """

    job: str
    runner: str
    run: str
    uses: str
    inputs: Values
    environment: Mapping[str, str]
    tolerated: bool = False
    outputs: dict[str, str] = field(default_factory=dict)
    succeeded: bool = True


def load(path: Path) -> dict[str, Any]:
    """Returns a workflow whose scalars, `on` and `true` included, are strings."""
    text = path.read_text(encoding="utf-8")
    workflow: dict[str, Any] = yaml.load(text, yaml.BaseLoader)  # noqa: S506 - it makes nothing but strings
    return workflow


def steps(name: str, contexts: Values, *, called_as: str = "") -> Iterator[Step]:
    """Yields the steps that GitHub would run, one runner after another, each when the ones before it have ended.

    Args:
        name: the workflow's file.
        contexts: `github`, `vars`, `secrets`, `inputs`, with every value that the workflow asks for; None for null.
        called_as: prefix of the jobs' names: the job that calls the workflow.

    Raises:
        UnknownExpressionError: at the step that has it.
    """
    workflow = load(DIRECTORY / name)
    needs: dict[str, Any] = {}
    for key, job in _in_order(workflow["jobs"]):
        here = {**contexts, "needs": {needed: needs[needed] for needed in _needed(job)}}
        needs[key] = yield from _job(f"{called_as}{key}", job, here, workflow.get("env", {}))


def resolve(text: str, contexts: Values) -> str:
    """Returns the text of a workflow's value with its expressions evaluated.

    Raises:
        UnknownExpressionError: there is something in it that this module does not know.
    """
    return re.sub(r"\$\{\{(.*?)\}\}", lambda match: _as_text(evaluate(match[1], contexts)), text, flags=re.DOTALL)


def evaluate(expression: str, contexts: Values) -> Any:
    """Returns the value of an expression, with or without its `${{ }}`.

    Raises:
        UnknownExpressionError: there is something in it that this module does not know.
    """
    bare = expression.removeprefix("${{").removesuffix("}}")
    python = _TOKEN.sub(lambda token: _PYTHON.get(token[0]) or repr(token[0][1:-1].replace("''", "'")), bare)
    try:
        return _value(ast.parse(f"({python})", mode="eval").body, contexts)
    except (AttributeError, LookupError, SyntaxError, TypeError) as error:
        raise UnknownExpressionError(f"{expression.strip()}: {error!r}") from error


def _in_order(jobs: dict[str, Any]) -> list[tuple[str, Any]]:
    """Returns the jobs, each after those that it needs; nothing else orders them, so the file's last goes first."""
    ordered: dict[str, Any] = {}
    while len(ordered) < len(jobs):
        ready = {
            key: job for key, job in reversed(jobs.items()) if key not in ordered and set(_needed(job)) <= set(ordered)
        }
        assert ready, "jobs need each other in a circle, or one that is not there"
        ordered |= ready
    return list(ordered.items())


def _needed(job: dict[str, Any]) -> list[str]:
    needs = job.get("needs", [])
    return [needs] if isinstance(needs, str) else needs


def _job(
    name: str, job: dict[str, Any], contexts: Values, environment: Values
) -> Generator[Step, None, dict[str, Any]]:
    """Yields the steps of a job, for each row of its matrix, and returns the job's entry in `needs`."""
    _allow(CALL_KEYS if "uses" in job else JOB_KEYS, job)
    succeeded = all(needed["result"] == "success" for needed in contexts["needs"].values())
    if not _condition(job.get("if", ""), contexts, succeeded=succeeded):
        return {"result": "skipped", "outputs": {}}
    results: list[bool] = []
    outputs: dict[str, str] = {}
    for row in _rows(job.get("strategy", {}).get("matrix", {}), contexts):
        here = {**contexts, "matrix": row}
        if "uses" in job:
            result = yield from _called(name, job, here)
        else:
            result, outputs = yield from _machine(name, job, here, environment)
        results.append(result)
    return {"result": "success" if all(results) else "failure", "outputs": outputs}


def _called(name: str, job: dict[str, Any], contexts: Values) -> Generator[Step, None, bool]:
    """Yields the steps of a called workflow, which gets inputs and no `needs`, and returns whether all succeeded."""
    path = job["uses"].removeprefix(OWN_WORKFLOW)
    declared = (load(DIRECTORY / path)["on"]["workflow_call"] or {}).get("inputs", {})
    given: dict[str, Any] = {key: resolve(text, contexts) for key, text in job.get("with", {}).items()}
    if set(given) != set(declared):
        raise UnknownExpressionError(f"{path} asks for {sorted(declared)} and is given {sorted(given)}")
    given |= {key: given[key] == "true" for key, value in declared.items() if value["type"] == "boolean"}
    succeeded = True
    shared = {key: contexts[key] for key in ("github", "vars", "secrets")}
    for step in steps(path, {**shared, "inputs": given}, called_as=f"{name}/"):
        yield step
        succeeded = succeeded and step.succeeded
    return succeeded


def _machine(
    name: str, job: dict[str, Any], contexts: Values, environment: Values
) -> Generator[Step, None, tuple[bool, dict[str, str]]]:
    """Yields the steps of one runner and returns whether all succeeded, and the job's outputs."""
    here: dict[str, Any] = {**contexts, "steps": {}}
    succeeded = True
    for step in job["steps"]:
        _allow(STEP_KEYS, step)
        if not _condition(step.get("if", ""), here, succeeded=succeeded):
            continue
        added = {**environment, **job.get("env", {}), **step.get("env", {})}
        running = Step(
            job=name,
            runner=resolve(job["runs-on"], here),
            run=step.get("run", ""),
            uses=step.get("uses", ""),
            inputs={key: resolve(text, here) for key, text in step.get("with", {}).items()},
            environment={key: resolve(text, here) for key, text in added.items()},
            tolerated=step.get("continue-on-error") == "true",
        )
        yield running
        succeeded = succeeded and (running.succeeded or running.tolerated)
        if "id" in step:
            here["steps"][step["id"]] = {"outputs": running.outputs}
    named = job.get("outputs", {})
    outputs = {key: resolve(text, here) for key, text in named.items()} if succeeded else dict.fromkeys(named, "")
    return succeeded, outputs


def _allow(known: frozenset[str], found: Values) -> None:
    if unknown := set(found) - known:
        raise UnknownExpressionError(f"the keys {sorted(unknown)}")


def _rows(matrix: Values, contexts: Values) -> list[Values]:
    """Returns the rows of a matrix that is either a list of rows or one list of values."""
    if not matrix:
        return [{}]
    [(axis, values)] = matrix.items()
    if isinstance(values, str):
        values = evaluate(values, contexts)
    return list(values) if axis == "include" else [{axis: value} for value in values]


def _condition(text: str, contexts: Values, *, succeeded: bool) -> bool:
    """Returns whether an `if` holds; unless it asks for a status, everything before must have succeeded."""
    asks = re.search(r"\b(success|failure|cancelled|always)\(\)", text)
    return bool((succeeded or asks) and (not text or evaluate(text, contexts)))


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return ""
    if isinstance(value, str | int):
        return str(value)
    raise UnknownExpressionError(f"{value!r} has no text")


# Once these tokens are Python's, its parser reads an expression: `~` binds as tightly as GitHub's `!`, unlike `not`.
# What is Python and not GitHub's language is refused by actionlint.
_TOKEN = re.compile(r"'(?:[^']|'')*'|&&|\|\||!(?!=)")
_PYTHON = {"&&": " and ", "||": " or ", "!": "~"}
_WORDS = {"true": True, "false": False, "null": None}
_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "fromJSON": json.loads,
    "toJSON": lambda value: json.dumps(value, indent=2),
    "format": lambda text, *values: text.format(*map(_as_text, values)),
    "always": lambda: True,
    "cancelled": lambda: False,
}


def _value(node: ast.expr, contexts: Values) -> Any:  # noqa: C901, PLR0911 - one case per kind of node
    """Returns the value of a part of an expression; `&&` and `||` evaluate no more than they need."""
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name):
            return _WORDS[name] if name in _WORDS else contexts[name]
        case ast.Attribute(value=inner, attr=key):
            return _value(inner, contexts)[key]
        case ast.Subscript(value=inner, slice=index):
            return _value(inner, contexts)[_value(index, contexts)]
        case ast.UnaryOp(op=ast.Invert(), operand=operand):
            return not _value(operand, contexts)
        case ast.BoolOp(op=operator, values=[*parts, last]):
            decisive = isinstance(operator, ast.Or)
            for part in parts:
                if bool(value := _value(part, contexts)) is decisive:
                    return value
            return _value(last, contexts)
        case ast.Compare(left=left, ops=[ast.Eq() | ast.NotEq() as operator], comparators=[right]):
            # Texts alone have `lower`: how GitHub converts other values is not needed.
            equal = _value(left, contexts).lower() == _value(right, contexts).lower()
            return equal is isinstance(operator, ast.Eq)
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
            return _FUNCTIONS[name](*(_value(argument, contexts) for argument in arguments))
    raise TypeError(ast.unparse(node))
