"""Gathers the facts of an image: its configuration, its layers, and how its programs behave.

All containers run hardened and without a network, as `adapters/engine.py` starts them.
"""

from __future__ import annotations

import contextlib
import posixpath
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from base_images.adapters.container import Container, ContainerSpec, ProbeResult
from base_images.adapters.engine import Engine, Image
from base_images.contract import layers as archive
from base_images.contract import sizes
from base_images.contract.layers import Entry, Kind, Layer
from base_images.errors import EngineError, ImageNotFoundError
from base_images.image import (
    ARBITRARY_USER,
    ARBITRARY_USER_OF_GROUP_0,
    STOP_AT_ONCE_SECONDS,
    STOP_SECONDS,
    VOLUMES,
    glibc_version,
    loaded_backends,
)
from base_images.labels import Label
from base_images.recipes import consumer
from base_images.recipes.consumer import Answer, Consumer
from base_images.variants import VARIANTS, Platform, Variant

VERSION_JSON = "/app/version.json"
PASSWD = "/etc/passwd"  # noqa: S105 - a file's name
GROUP = "/etc/group"

PORT = 18099
"""Not a default port, which detects a health check with a fixed port; free, since the container has no network."""

READY_SECONDS = 60

COREUTILS = ("cat", "chmod", "chown", "cp", "id", "ls", "mkdir", "mv", "rm", "sleep", "timeout")
"""A sample of coreutils that scripts of child images use; in practice all are missing or none."""

_SHELL_SECONDS = 300
_COMMAND_SECONDS = 60

_LDD = 'ldd --version >/dev/null || exit; for file; do echo "== $file"; ldd -r "$file" 2>&1; done; exit 0'
_MISSING = 'for tool; do command -v "$tool" >/dev/null || echo "$tool"; done'
_COPY = (
    'cp -RP "$1" /tmp/copy && /tmp/copy/llama-server -lv 5 --list-devices; status=$?; rm -rf /tmp/copy; exit $status'
)

_WRITE = 'for place; do mkdir "$place/new" && : >"$place/new/file" || echo "$place"; done'

# A shell's `exec` keeps the process number, which is 1. Opening the pipe, which nobody writes to, never ends.
_PIPE = "/tmp/model.gguf"  # noqa: S108 - inside the container
_LOAD_FOREVER = f'mkfifo {_PIPE} && exec "$@"'


@dataclass(frozen=True, kw_only=True)
class Places:
    """What a user can write of VOLUMES, each a volume that was new; `result` names on standard output what it cannot.

    Attributes:
        user: `uid:gid`, or the image's own user.
    """

    user: str
    result: ProbeResult


@dataclass(frozen=True, kw_only=True)
class Stop:
    """How a container that the image's own entrypoint started ended with SIGTERM.

    Attributes:
        phase: what the server was doing.
        reached: whether it came to do that within READY_SECONDS.
        exit_code: None when it still ran STOP_SECONDS after SIGTERM.
        seconds: from SIGTERM to its end, the shortest of up to three attempts: a machine may be slow once.
        log: its complete output.
    """

    phase: str
    reached: bool
    exit_code: int | None
    seconds: float
    log: str


@dataclass(frozen=True, kw_only=True)
class Start:
    """A run of llama-server without a model, as an arbitrary user, that ended with SIGTERM.

    Attributes:
        ready: whether it listened within READY_SECONDS.
        log: its complete output.
        backends: the paths of the loaded backends; empty when it was not ready.
        health: the result of the image's health check in its container; None without one, or when it was not ready.
        exit_code: None when it still ran STOP_SECONDS after SIGTERM; of no meaning when it was not ready.
        stop_seconds: seconds from SIGTERM to its end.
    """

    ready: bool
    log: str
    backends: tuple[str, ...]
    health: ProbeResult | None
    exit_code: int | None
    stop_seconds: float


@dataclass(frozen=True, kw_only=True)
class Server:
    """A llama-server of the image, started by its absolute path from another working directory.

    Attributes:
        path: the absolute path.
        version: the result of `--version`.
        start: a run of the server.
        copied: the result of `--list-devices` in a copy of its directory; None when the image has no shell to copy it.
    """

    path: str
    version: ProbeResult
    start: Start
    copied: ProbeResult | None


@dataclass(frozen=True, kw_only=True)
class Shell:
    """Results of commands in the image, run as the image's user.

    Attributes:
        runs: the result of `sh -c true`.
        version_json: the result of `cat /app/version.json`.
        curl: the result of `curl --version`.
        missing_tools: the missing ones of COREUTILS.
        glibc: the version that getconf prints, such as `2.41`; empty when it prints none.
        ldd: each payload file's output of `ldd -r`; None when ldd does not run.
        health: the result of the health check where process 1 is another program; None when the image has none.
    """

    runs: ProbeResult
    version_json: ProbeResult
    curl: ProbeResult
    missing_tools: tuple[str, ...]
    glibc: str
    ldd: Mapping[str, str] | None
    health: ProbeResult | None


@dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """The facts that the rows of the contract are judged by.

    Attributes:
        reference: the reference that the caller named.
        image: the engine's description of the image.
        variant: the variant by its label, else by its directories, else `asked`; None when unknown.
        asked: the variant that the caller expects; may be None.
        platform: None when this project does not build for it.
        layers: the entries of each layer, lowest first.
        files: the file system that a container sees.
        base_layers: how many of the lowest layers belong to the base image.
        base: how the base was found, for people.
        servers: every file named llama-server; those below /app/bin first.
        answers: the servers' answers to BodhiApp's arguments; empty when the variant is unknown.
        shell: results of commands in the image; None when it cannot run `sleep`.
        shell_error: the engine's error then.
        places: what each kind of user can write.
        stops: how it stops in each phase; empty when its entrypoint is no llama-server, and so a child's own program.
        emulated: whether the engine emulates the image's processor, which takes ten times as long.
        before: the image that its size is compared with; None to compare it with none.
    """

    reference: str
    image: Image
    variant: Variant | None
    asked: Variant | None
    platform: Platform | None
    layers: tuple[Layer, ...]
    files: Mapping[str, Entry]
    base_layers: int
    base: str
    servers: tuple[Server, ...]
    answers: tuple[Answer, ...]
    shell: Shell | None
    shell_error: str
    places: tuple[Places, ...]
    stops: tuple[Stop, ...]
    emulated: bool = False
    before: sizes.Before | None = None

    @property
    def sizes(self) -> sizes.Sizes:
        """What it stores above its base."""
        return sizes.of_layers(self.layers[self.base_layers :], self.image.history)

    @property
    def directories(self) -> tuple[str, ...]:
        """The directories that BodhiApp looks for llama-server in, the variant's own first; empty when unknown."""
        if self.platform is None or self.variant is None:
            return ()
        return tuple(f"/app/bin/{self.platform.triple}/{name}" for name in self.variant.directories)

    @property
    def payload(self) -> tuple[Entry, ...]:
        """The entries below /app/bin and in any other directory below /app that has a llama-server."""
        return payload(self.files)


def gather(engine: Engine, reference: str, asked: Variant | None = None) -> ImageFacts:
    """Returns the facts of the image that `reference` names now, also when the tag moves meanwhile.

    Raises:
        ImageNotFoundError: the engine has no such image.
        EngineError: the engine failed, or sent an archive that cannot be read.
    """
    image = engine.image(reference)
    layers = archive.read(engine.save(image.id), diff_ids=image.diff_ids, keep=(VERSION_JSON, PASSWD, GROUP))
    files = archive.merge(layers)
    base_layers, base = _base(engine, image)
    platform = Platform.of_architecture(image.architecture)
    paths = sorted(
        (path for path, entry in files.items() if _is_server(entry)),
        key=lambda path: (not path.startswith("/app/bin/"), path),
    )
    shell, copies, shell_error = _ask_shell(engine, image, files, paths)
    variant = _variant(image, files, platform) or asked
    return ImageFacts(
        reference=reference,
        image=image,
        variant=variant,
        asked=asked,
        platform=platform,
        layers=layers,
        files=files,
        base_layers=base_layers,
        base=base,
        servers=tuple(
            Server(
                path=path,
                version=engine.probe(_server_spec(image, path, "--version"), timeout=_COMMAND_SECONDS),
                start=_start(engine, image, files, path),
                copied=copies.get(path),
            )
            for path in paths
        ),
        answers=ask_arguments(engine, image, variant, consumer.load()) if variant and paths else (),
        shell=shell,
        shell_error=shell_error,
        places=tuple(_write(engine, image, user) for user in (None, ARBITRARY_USER, ARBITRARY_USER_OF_GROUP_0)),
        stops=_stops(engine, image),
        emulated=image.architecture != engine.info().architecture,
    )


def sizes_of(engine: Engine, image: Image) -> sizes.Sizes:
    """Returns what another image stores above its base.

    Raises:
        EngineError: the engine failed, or sent an archive that cannot be read.
    """
    layers = archive.read(engine.save(image.id), diff_ids=image.diff_ids)
    return sizes.of_layers(layers[_base(engine, image)[0] :], image.history)


def ask_arguments(engine: Engine, image: Image, variant: Variant, known: Consumer) -> tuple[Answer, ...]:
    """Returns the answers of an image's servers to BodhiApp's arguments, run as the image's user.

    Raises:
        UsageError: no image of BodhiApp starts from this variant.
        EngineError: the engine failed.
    """
    platform = Platform.of_architecture(image.architecture)
    triple = platform.triple if platform else image.architecture

    def server(path: str, words: tuple[str, ...]) -> tuple[int, str]:
        spec = ContainerSpec(image=image.id, entrypoint=(path,), command=(*words, "--version"))
        result = engine.probe(spec, timeout=_COMMAND_SECONDS)
        return result.exit_code, result.output

    return tuple(
        consumer.ask(
            directory,
            arguments,
            known.refusals_of(variant.name),
            partial(server, f"/app/bin/{triple}/{directory}/llama-server"),
        )
        for directory, arguments in known.starts(variant.name)
    )


def payload(files: Mapping[str, Entry]) -> tuple[Entry, ...]:
    """Returns the entries below /app/bin and in any other directory below /app that has a llama-server."""
    homes = {posixpath.dirname(path) for path, entry in files.items() if _is_server(entry)}
    return tuple(
        entry
        for path, entry in files.items()
        if path.startswith("/app/bin/") or (path.startswith("/app/") and posixpath.dirname(path) in homes)
    )


def which(files: Mapping[str, Entry], command: str, search: str) -> Entry | None:
    """Returns the file of a command, looked up in the PATH `search` when it has no slash; None when there is none."""
    candidates = [command] if "/" in command else [f"{directory}/{command}" for directory in search.split(":")]
    found = (archive.resolve(files, path) for path in candidates)
    return next((entry for entry in found if entry is not None and entry.kind is Kind.FILE), None)


def _is_server(entry: Entry) -> bool:
    return entry.kind is Kind.FILE and posixpath.basename(entry.path) == "llama-server"


def _variant(image: Image, files: Mapping[str, Entry], platform: Platform | None) -> Variant | None:
    by_name = {variant.name: variant for variant in VARIANTS}
    if image.labels.get(Label.VARIANT) in by_name:
        return by_name[image.labels[Label.VARIANT]]
    present = [variant for variant in VARIANTS if platform and f"/app/bin/{platform.triple}/{variant.name}" in files]
    # Every image has the cpu directory, so that another one decides.
    return max(present, key=lambda variant: len(variant.directories), default=None)


def _base(engine: Engine, image: Image) -> tuple[int, str]:
    """Returns the number of base layers: those of a local image that the base labels name, if the layers match.

    Else those below our recipe's in the image's history: a runner that pulled the image does not have the base.
    """
    name = image.labels.get(Label.BASE_NAME, "")
    digest = image.labels.get(Label.BASE_DIGEST, "")
    for reference in (f"{name}@{digest}" if name and digest else "", name, digest):
        if not reference:
            continue
        try:
            base = engine.image(reference)
        except ImageNotFoundError:
            continue
        count = len(base.diff_ids)
        if 0 < count < len(image.diff_ids) and image.diff_ids[:count] == base.diff_ids:
            return count, f"the base is {name or reference}"
    ours = sizes.of_ours(image.history)
    if ours and ours < len(image.diff_ids):
        return len(image.diff_ids) - ours, "the base is what the image's history has below our recipe"
    return 1, "the base is taken to be the first layer: what its labels name is not here, and no recipe of ours made it"


def _bounded(files: Mapping[str, Entry], image: Image, command: Sequence[str]) -> tuple[str, ...]:
    """Runs the command under `timeout` if the image has it: the engine cannot end a command in a container."""
    bound = ("timeout", str(_COMMAND_SECONDS)) if which(files, "timeout", image.environment.get("PATH", "")) else ()
    return (*bound, *command)


def _ask_shell(
    engine: Engine, image: Image, files: Mapping[str, Entry], servers: Sequence[str]
) -> tuple[Shell | None, dict[str, ProbeResult], str]:
    spec = ContainerSpec(
        image=image.id,
        entrypoint=("sleep", str(_SHELL_SECONDS)),
        working_directory="/",
        tmpfs={"/tmp": "exec,mode=1777"},  # noqa: S108 - inside the container
    )
    elves = [entry.path for entry in payload(files) if entry.is_elf]
    try:
        with engine.container(spec) as container:
            container.start()

            def ask(*command: str) -> ProbeResult:
                return container.execute(_bounded(files, image, command))

            health = image.healthcheck
            shell = Shell(
                runs=ask("sh", "-c", "true"),
                version_json=ask("cat", VERSION_JSON),
                curl=ask("curl", "--version"),
                missing_tools=tuple(ask("sh", "-c", _MISSING, "sh", *COREUTILS).stdout.split()),
                glibc=glibc_version(ask("getconf", "GNU_LIBC_VERSION").stdout),
                ldd=_ldd(ask("sh", "-c", _LDD, "sh", *elves)),
                health=ask(*health) if health else None,
            )
            copies = {path: ask("sh", "-c", _COPY, "sh", posixpath.dirname(path)) for path in servers}
    except EngineError as error:
        return None, {}, str(error)
    return shell, copies, ""


def _ldd(result: ProbeResult) -> dict[str, str] | None:
    if result.exit_code:
        return None
    blocks = ("\n" + result.stdout).split("\n== ")[1:]
    return dict(block.partition("\n")[::2] for block in blocks)


def _server_spec(image: Image, path: str, *arguments: str) -> ContainerSpec:
    return ContainerSpec(
        image=image.id, entrypoint=(path,), command=arguments, user=ARBITRARY_USER, working_directory="/"
    )


def _start(engine: Engine, image: Image, files: Mapping[str, Entry], path: str) -> Start:
    spec = _server_spec(image, path, "--host", "127.0.0.1", "--port", str(PORT), "-lv", "5")
    health = image.healthcheck
    with engine.container(spec) as container:
        try:
            container.start()
        except EngineError as error:
            return Start(ready=False, log=str(error), backends=(), health=None, exit_code=127, stop_seconds=0)
        ready = _waits(container, _has_logged)
        healthy = container.execute(_bounded(files, image, health)) if ready and health else None
        backends = loaded_backends(container.maps()) if ready else ()
        asked = time.monotonic()
        code: int | None = container.state().exit_code
        if ready:
            container.signal("SIGTERM")
            code = container.wait(STOP_SECONDS)
        stopped = time.monotonic()
        return Start(
            ready=ready,
            log=container.logs(),
            backends=backends,
            health=healthy,
            exit_code=code,
            stop_seconds=stopped - asked,
        )


def _write(engine: Engine, image: Image, user: str | None) -> Places:
    with contextlib.ExitStack() as stack:
        volumes = {stack.enter_context(engine.volume("probe")): place for place in VOLUMES}
        spec = ContainerSpec(
            image=image.id,
            entrypoint=("sh", "-c", _WRITE, "sh"),
            command=VOLUMES,
            user=user,
            working_directory="/",
            volumes=volumes,
        )
        return Places(user=user or image.user, result=engine.probe(spec))


def _stops(engine: Engine, image: Image) -> tuple[Stop, ...]:
    if not image.entrypoint or posixpath.basename(image.entrypoint[0]) not in {"llama-entrypoint", "llama-server"}:
        return ()
    address = ("--host", "127.0.0.1", "--port", str(PORT))
    loading = ContainerSpec(
        image=image.id,
        entrypoint=("sh", "-c", _LOAD_FOREVER, "sh", *image.entrypoint),
        command=(*address, "--model", _PIPE),
        user=ARBITRARY_USER,
        tmpfs={"/tmp": "mode=1777"},  # noqa: S108 - inside the container
    )
    ready = ContainerSpec(image=image.id, command=address, user=ARBITRARY_USER)
    return (
        _stop(engine, loading, "while it loads a model", _has_port),
        _stop(engine, ready, "when it is ready", _has_logged),
    )


def _stop(engine: Engine, spec: ContainerSpec, phase: str, reached: Callable[[Container], bool]) -> Stop:
    seconds = float(STOP_SECONDS)
    for _ in range(3):
        with engine.container(spec) as container:
            try:
                container.start()
            except EngineError as error:
                return Stop(phase=phase, reached=False, exit_code=127, seconds=0, log=str(error))
            arrived = _waits(container, reached)
            asked = time.monotonic()
            code: int | None = container.state().exit_code
            if arrived:
                container.signal("SIGTERM")
                code = container.wait(STOP_SECONDS)
            seconds = min(seconds, time.monotonic() - asked)
            log = container.logs()
        if not arrived or code is None or seconds < STOP_AT_ONCE_SECONDS:
            break
    return Stop(phase=phase, reached=arrived, exit_code=code, seconds=seconds, log=log)


def _waits(container: Container, reached: Callable[[Container], bool]) -> bool:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        running = container.state().running
        if reached(container):
            return running
        if not running:
            return False
        time.sleep(0.05)
    return False


def _has_logged(container: Container) -> bool:
    return f"listening on http://127.0.0.1:{PORT}" in container.logs()


def _has_port(container: Container) -> bool:
    """Whether a process listens on PORT: llama-server does so before it loads the model, and logs it afterwards."""
    try:
        return f":{PORT:04X} 00000000:0000 0A" in container.execute(("cat", "/proc/net/tcp")).stdout
    except EngineError:  # it has ended since; the next look at its state says so
        return False
