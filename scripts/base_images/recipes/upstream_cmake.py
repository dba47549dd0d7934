"""What llama.cpp's CMake files decide: options, architectures, toolkits, targets and backend libraries."""

from __future__ import annotations

import fnmatch
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from base_images.recipes.cmake_source import Command, commands
from base_images.recipes.statements import ALL, Area, Statements, Subject

FILES = (
    "CMakeLists.txt",
    "cmake/*.cmake",
    "common/CMakeLists.txt",
    "src/CMakeLists.txt",
    "ggml/CMakeLists.txt",
    "ggml/src/CMakeLists.txt",
    "ggml/src/ggml-*/CMakeLists.txt",
    "tools/CMakeLists.txt",
    "tools/server/CMakeLists.txt",
    "tools/ui/CMakeLists.txt",
    "tools/mtmd/CMakeLists.txt",
)
"""The CMake files that decide what is built, as patterns."""

_BACKENDS = {
    "CPU": ALL,
    "CUDA": ("cuda", "rocm", "musa"),  # HIP and MUSA compile the sources of CUDA
    "HIP": ("rocm",),
    "MUSA": ("musa",),
    "VULKAN": ("vulkan",),
    "SYCL": ("intel",),
    "CANN": ("cann",),
} | dict.fromkeys(
    ("METAL", "OPENCL", "WEBGPU", "HEXAGON", "OPENVINO", "ZDNN", "ZENDNN", "VIRTGPU", "ET", "ACCELERATE"), ()
)
"""The variants that a backend's options and files concern; a backend that is not here may concern all."""

_LISTS = re.compile(r"CMAKE_(?:CUDA|HIP)_ARCHITECTURES|MUSA_ARCHITECTURES|(?:AMD)?GPU_TARGETS|GGML_SYCL_DEVICE_ARCH")
_SHARED = "BUILD_SHARED_LIBS"  # also set around a part that is built otherwise, which changes no default
_OPTION = re.compile(r"(?:GGML|LLAMA|MTMD)_\w+|BUILD_SHARED_LIBS")
_VERSION = re.compile(r"(\w+) (VERSION_LESS(?:_EQUAL)?|VERSION_GREATER(?:_EQUAL)?|VERSION_EQUAL) (\S+)")
_WORDS = {"VERSION_LESS_EQUAL": "<=", "VERSION_LESS": "<", "VERSION_GREATER_EQUAL": ">=", "VERSION_GREATER": ">"}
_SWITCH = {"TRUE": "ON", "YES": "ON", "FALSE": "OFF", "NO": "OFF"}
_TARGET = re.compile(r"\$\{(TARGET(?:_NAME)?)\}")
_NOT_BUILT = frozenset({"ALIAS", "IMPORTED", "INTERFACE", "OBJECT"})
_PROPERTIES = ("OUTPUT_NAME", "PREFIX", "SUFFIX", "SOVERSION")
"""Properties that decide the name of a library; the links to a full VERSION are copied whatever it is."""
_VARIABLE = re.compile(r"\$\{(\w+)\}")


_Stated = Iterator[tuple[Area, str, str]]


@dataclass(frozen=True, kw_only=True)
class Names:
    """Names that a version's CMake files share.

    Attributes:
        options: of options.
        defaults: of the plain variables that are an option's default.
        majors: the values of major versions, which the names of libraries end in.
    """

    options: frozenset[str]
    defaults: frozenset[str]
    majors: Mapping[str, str]


def cmake(path: str, text: str, names: Names) -> Statements:
    """Returns what a CMake file says about options, architectures, toolkits, targets and backend libraries.

    Args:
        path: the file's path in llama.cpp.
        text: the file.
        names: as `option_names` returns them for all files.

    Raises:
        SourceError: the file cannot be read.
    """
    found: Statements = {}
    variables: dict[str, str] = {}
    for command in commands(text):
        if command.name == "set" and len(command.arguments) > 1:
            variables[command.arguments[0]] = command.arguments[1]
        for area, what, value in _stated(path, _with_targets(command, variables), names):
            subject = Subject(area=area, variants=_concerned(path, what), what=what)
            # What is refused is the condition itself.
            conditions = (
                command.conditions[:-1] if area is Area.TOOLKIT and command.name == "message" else command.conditions
            )
            item = f"{value}{_under(conditions, what)}"
            found[subject] = (*(known for known in found.get(subject, ()) if known != item), item)
    return found


def _with_targets(command: Command, variables: Mapping[str, str]) -> Command:
    """Returns a command with the names of targets, which are variables in most files, in their place."""
    given = (_TARGET.sub(lambda name: variables.get(name[1], name[0]), word) for word in command.arguments)
    return replace(command, arguments=tuple(given))


def _stated(path: str, command: Command, names: Names) -> _Stated:
    """Yields the statements of a command: the area, the subject and the value."""
    for read in (_options, _architectures, _toolkits, _targets):
        # A function's own variable names what its caller passes, which is told at the call.
        yield from (stated for stated in read(path, command, names) if "$" not in stated[1])


def option_names(texts: Iterable[str]) -> Names:
    """Returns the names that these CMake files, all of one version, share."""
    files = "\n".join(re.sub(r"#[^\n]*", "", text) for text in texts)
    plain = r"\(\s*(\w+)\s+"
    calls = re.findall(rf'(?i)\boption\s*{plain}(?:"(?:[^"\\]|\\.)*")?([^()]*)', files)
    calls += re.findall(rf"(?i)\bset\s*{plain}([^()]*?)\sCACHE\b", files)
    defaults = (name for _, value in calls for name in re.findall(r"\$\{([A-Za-z]\w*)\}", value))
    majors = dict(re.findall(r"(?i)\bset\s*\(\s*(\w+_VERSION_MAJOR)\s+(\d+)", files))
    return Names(options=frozenset(name for name, _ in calls), defaults=frozenset(defaults), majors=majors)


def _options(path: str, command: Command, names: Names) -> _Stated:
    match command.name, command.arguments:
        case "option", [name, _, *value] if _OPTION.fullmatch(name):
            yield Area.OPTION, name, _switch(" ".join(value) or "OFF")
        case "cmake_dependent_option", [name, _, value, depends, force, *_] if _OPTION.fullmatch(name):
            yield Area.OPTION, name, f"{_switch(value)} if {depends}, else {_switch(force)}"
        case "set", [name, *rest] if "CACHE" in rest and "INTERNAL" not in rest and _OPTION.fullmatch(name):
            yield Area.OPTION, name, _switch(" ".join(rest[: rest.index("CACHE")])) or "empty"
        case "set", [name, *rest] if "CACHE" not in rest and name in names.defaults | (names.options - {_SHARED}):
            yield Area.OPTION, name, _switch(" ".join(rest))
        case "llama_option_depr", [kind, old, *new] if _OPTION.fullmatch(old):
            yield Area.OPTION, f"{old}, as deprecated", " ".join((kind, *new))
        case "message", ["FATAL_ERROR", *_] if command.conditions:
            words = {*re.findall(r"[A-Za-z]\w+", command.conditions[-1])} - {"NOT", "AND", "OR"}
            if words <= names.options:
                yield Area.OPTION, f"refused by {path}", "error"
        case _:
            pass


def _architectures(_: str, command: Command, __: Names) -> _Stated:
    lists = [name for name in command.arguments[:2] if _LISTS.fullmatch(name)]
    if lists and (command.name == "set" or (command.name == "list" and command.arguments[0] == "APPEND")):
        values = [word for word in command.arguments[command.arguments.index(lists[0]) + 1 :] if word]
        values = values[: values.index("CACHE")] if "CACHE" in values else values
        # An option that is set in the cache is told as one.
        if values and not _OPTION.fullmatch(lists[0]):
            yield Area.ARCHITECTURES, lists[0], " ".join(" ".join(values).replace(";", " ").split())


def _toolkits(path: str, command: Command, _: Names) -> _Stated:
    match command.name, command.arguments:
        case "message", ["FATAL_ERROR", *_] if command.conditions:
            for name, sign, version in _VERSION.findall(command.conditions[-1]):
                yield Area.TOOLKIT, f"{name} that {path} refuses", f"{_WORDS.get(sign, '=')} {version}"
        case "cmake_minimum_required", ["VERSION", version, *_]:
            yield Area.TOOLKIT, f"CMake for {path}", version
        case "find_package", [name, *rest]:
            yield Area.TOOLKIT, f"package {name} for {path}", " ".join(rest) or "optional"
        case _:
            pass


def _targets(path: str, command: Command, names: Names) -> _Stated:
    match command.name, command.arguments:
        case ("add_executable" | "add_library") as kind, [name, *rest] if not _NOT_BUILT & {*rest}:
            kinds = [word for word in rest[:1] if word in {"SHARED", "STATIC", "MODULE"}]
            yield Area.TARGET, name, " ".join((kind.removeprefix("add_"), *kinds))
        case "add_subdirectory", [name, *_]:
            directory = "/".join((*PurePosixPath(path).parts[:-1], name))
            if any(fnmatch.fnmatchcase(f"{directory}/CMakeLists.txt", pattern) for pattern in FILES):
                yield Area.TARGET, f"directory {directory}", "built"
        case "set_target_properties", [name, *rest]:
            for key, value in itertools.pairwise(rest):
                if key in _PROPERTIES:
                    yield (
                        Area.TARGET,
                        f"{key} of {name}",
                        _VARIABLE.sub(lambda word: names.majors.get(word[1], word[0]), value),
                    )
        case "ggml_add_backend_library", [name, *_]:
            yield Area.BACKEND, name, "built"
        case "ggml_add_backend", [name, *_]:
            yield Area.BACKEND, f"backend {name}", "built"
        case "ggml_add_cpu_backend_variant", [name, *features]:
            yield Area.BACKEND, f"ggml-cpu-{name}", " ".join(features) or "no features"
        case _:
            pass


def _switch(value: str) -> str:
    return _SWITCH.get(value.upper(), value.upper() if value.upper() in {"ON", "OFF"} else value)


def _under(conditions: Iterable[str], what: str) -> str:
    """Returns the conditions in words, without those that only ask whether the value or the toolkit is there."""
    said = [
        _VERSION.sub(lambda found: f"{found[1]} {_WORDS.get(found[2], '=')} {found[3]}", condition)
        for condition in conditions
        if not re.fullmatch(rf"NOT DEFINED {re.escape(what)}|\w+_FOUND", condition)
    ]
    return f" if {' and '.join(said)}" if said else ""


def _concerned(path: str, what: str) -> tuple[str, ...]:
    """Returns the variants that a backend's file or option concerns; without a backend all."""
    directory = re.search(r"ggml/src/ggml-([a-z]+)/", path)
    named = re.match(r"(?:GGML_|backend |ggml-)([A-Za-z]+)", what)
    if directory and directory[1] == "cuda":
        return ("cuda",)
    backend = directory or named
    return _BACKENDS.get(backend[1].upper(), ALL) if backend else ALL
