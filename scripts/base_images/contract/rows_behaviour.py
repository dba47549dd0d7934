"""Contract rows 3, 8, 11, 13, 14, 15 and 18 to 20: how the programs in the image behave."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping

from base_images.contract import layers
from base_images.contract.facts import ImageFacts, Server, which
from base_images.contract.verdict import NO_SERVER, Status, Verdict, blocked_by, each_server, last, last_line, some
from base_images.image import ARBITRARY_USER, EMULATED_STOP_SECONDS, STOP_AT_ONCE_SECONDS, STOP_SECONDS, VOLUMES
from base_images.labels import Label
from base_images.recipes import consumer
from base_images.variants import STATIC_BACKENDS, Platform

# llama.cpp b11312, ggml/src/CMakeLists.txt, the calls of ggml_add_cpu_backend_variant.
CPU_BACKENDS: Mapping[Platform, tuple[str, ...]] = {
    Platform.AMD64: (
        *("x64", "sse42", "sandybridge", "ivybridge", "piledriver", "haswell", "skylakex", "cannonlake"),
        *("cascadelake", "icelake", "cooperlake", "zen4", "alderlake", "sapphirerapids"),
    ),
    Platform.ARM64: (
        *("armv8.0_1", "armv8.2_1", "armv8.2_2", "armv8.2_3"),
        *("armv8.6_1", "armv8.6_2", "armv9.2_1", "armv9.2_2"),
    ),
}
"""The portable CPU backends, one library each; GGML_NATIVE would build a single libggml-cpu.so instead."""

_CA_CERTIFICATES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt")
_DEVICE_TEST = "that the device is used is for `invoke test-local-images --device` on a host that has it"
_VERSION_LINE = re.compile(r"^version: .*?(?:build )?(\d+)(?:, commit | \()(\w+)\)", re.MULTILINE)


def relocation(facts: ImageFacts) -> Verdict:
    """Row 3: a copy of llama-server's directory starts."""

    def finding(server: Server) -> str | None:
        if server.copied is None:
            return f"{server.path} could not be copied and started: the image cannot run a shell."
        if server.copied.exit_code:
            return f"A copy of {posixpath.dirname(server.path)} does not start: {last_line(server.copied)}"
        return None

    return each_server(facts, "its copy in /tmp starts", finding)


def tools(facts: ImageFacts) -> Verdict:
    """Row 8: the shell, coreutils, curl, CA certificates, entrypoint and health check are present and work."""
    findings = []
    if facts.shell is None:
        findings.append(f"The image cannot run sleep: {facts.shell_error}")
    else:
        if facts.shell.runs.exit_code:
            findings.append("There is no POSIX shell: `sh -c true` fails.")
        elif facts.shell.missing_tools:
            findings.append(f"Of coreutils {', '.join(facts.shell.missing_tools)} is missing.")
        if facts.shell.curl.exit_code:
            findings.append(f"curl does not run: {last_line(facts.shell.curl)}")
    stores = [layers.resolve(facts.files, path) for path in _CA_CERTIFICATES]
    if not any(store and store.size for store in stores):
        findings.append(f"There are no CA certificates: neither {' nor '.join(_CA_CERTIFICATES)} holds any.")
    for program in facts.image.entrypoint[:1]:
        findings += _program_findings(facts, "entrypoint", program)
    findings += _health_findings(facts)
    return Verdict(f"health check: {' '.join(facts.image.healthcheck) or 'none'}", findings)


def hardened(facts: ImageFacts) -> Verdict:
    """Row 11: llama-server starts read-only and unprivileged, as a user that no image knows."""

    def finding(server: Server) -> str | None:
        if server.start.ready:
            return None
        return (
            f"{server.path}, read-only and without privileges as {ARBITRARY_USER}, did not start to listen, "
            f"exit code {server.start.exit_code}: {last(server.start.log)}"
        )

    return each_server(facts, f"listens as {ARBITRARY_USER}, read-only", finding)


def portable(facts: ImageFacts) -> Verdict:
    """Row 13: llama-server reports the pinned build, and has the CPU backends for every processor."""
    if not facts.servers:
        return Verdict("no llama-server", [NO_SERVER])
    findings = []
    tag = facts.image.labels.get(Label.LLAMA_CPP_TAG, "")
    commit = facts.image.labels.get(Label.LLAMA_CPP_COMMIT, "")
    release = facts.image.labels.get(Label.LLAMA_CPP_RELEASE, "")
    if not tag or not commit:
        findings.append(f"The labels {Label.LLAMA_CPP_TAG} and {Label.LLAMA_CPP_COMMIT} do not say what was built.")
    said = ""
    for server in facts.servers:
        output = server.version.output
        match = _VERSION_LINE.search(output)
        if not match or server.version.exit_code:
            findings.append(f"{server.path} --version names no build and commit: {last(output)}")
            continue
        said = f"build {match[1]}, commit {match[2]}"
        if tag and match[1] != tag.removeprefix("b"):
            findings.append(f"{server.path} reports build {match[1]}, but the label {Label.LLAMA_CPP_TAG} is {tag!r}.")
        if release and f"version: {release.removeprefix('v')} (" not in output:
            findings.append(
                f"{server.path} does not report the version {release.removeprefix('v')} that the label "
                f"{Label.LLAMA_CPP_RELEASE} names: {match[0]}"
            )
        if commit and not commit.startswith(match[2]):
            findings.append(
                f"{server.path} reports commit {match[2]}, but the label {Label.LLAMA_CPP_COMMIT} is {commit!r}."
            )
    findings += _cpu_backend_findings(facts)
    return Verdict(said or "no version", findings)


def accelerator(facts: ImageFacts) -> Verdict:
    """Row 14: each server loads a CPU backend, and the accelerator's backend is present; device tests show its use."""
    if not facts.servers:
        return Verdict("no llama-server", [NO_SERVER])
    if facts.variant and facts.variant.static_backends:
        return Verdict(f"backends are linked in; {_DEVICE_TEST}", status=Status.ELSEWHERE)
    findings = []
    loaded: list[str] = []
    for server in facts.servers:
        loaded += map(posixpath.basename, server.start.backends)
        if not any(path.startswith(f"{posixpath.dirname(server.path)}/libggml-cpu") for path in server.start.backends):
            findings.append(f"{server.path} has not loaded a CPU backend from its own directory.")
    seen = f"loaded {', '.join(sorted(set(loaded))) or 'no backend'}"
    if facts.variant is None or not facts.variant.backend:
        return Verdict(seen, findings)
    backend = f"{facts.directories[0]}/{facts.variant.backend}" if facts.directories else ""
    if layers.resolve(facts.files, backend) is None:
        findings.append(f"There is no {backend}, which the accelerator is computed with.")
    return Verdict(f"{seen}; {_DEVICE_TEST}", findings, None if findings else Status.ELSEWHERE)


def stops(facts: ImageFacts) -> Verdict:
    """Row 15: llama-server exits with 0 within STOP_SECONDS of SIGTERM."""

    def finding(server: Server) -> str | None:
        start = server.start
        if not start.ready:
            return f"{server.path} did not start, so it could not be stopped."
        if start.exit_code is None:
            return f"{server.path} still runs {STOP_SECONDS} s after SIGTERM."
        return f"{server.path} ends with status {start.exit_code} after SIGTERM." if start.exit_code else None

    seconds = max((server.start.stop_seconds for server in facts.servers), default=0)
    return each_server(facts, f"stopped within {seconds:.1f} s", finding)


def arguments(facts: ImageFacts) -> Verdict:
    """Row 18: llama-server takes the arguments that BodhiApp passes, except for recorded refusals."""
    if not facts.servers:
        return Verdict("no llama-server", [NO_SERVER])
    if facts.variant is None:
        return Verdict("the variant is unknown, and so are its arguments", status=Status.NOT_APPLICABLE)
    judged = consumer.judge(facts.answers, consumer.load().refusals_of(facts.variant.name))
    taken = (
        f"{answer.directory}/ takes {len(consumer.grouped(answer.arguments)) - len(answer.refused)} of "
        f"{len(consumer.grouped(answer.arguments))}"
        for answer in facts.answers
    )
    if judged.known and not judged.findings:
        return Verdict("; ".join(taken), judged.known, Status.EXCEPTION)
    return Verdict("; ".join(taken), judged.findings)


def volumes(facts: ImageFacts) -> Verdict:
    """Row 19: a new volume at each of VOLUMES can be written by any user."""
    findings = []
    for place in facts.places:
        closed = place.result.stdout.split()
        if place.result.exit_code and not closed:
            findings.append(f"What {place.user} can write could not be tried: {last_line(place.result)}")
        elif closed:
            findings.append(f"{place.user} cannot write a new volume at {', '.join(closed)}.")
    return Verdict(f"{', '.join(VOLUMES)} by {', '.join(place.user for place in facts.places)}", findings)


def stops_at_once(facts: ImageFacts) -> Verdict:
    """Row 20: a container that the entrypoint started ends within STOP_AT_ONCE_SECONDS of SIGTERM in every phase.

    Where it is emulated, within EMULATED_STOP_SECONDS; process 1 that ignores the signal never ends either way.
    """
    if not facts.servers:
        return Verdict("no llama-server", [NO_SERVER])
    if not facts.stops:
        return Verdict("the image starts a program of its own", status=Status.NOT_APPLICABLE)
    findings = []
    for stop in facts.stops:
        if not stop.reached:
            findings.append(f"The server could not be stopped {stop.phase}, as it ended before: {last(stop.log)}")
        elif stop.exit_code is None:
            findings.append(f"The server still runs {STOP_SECONDS} s after SIGTERM {stop.phase}.")
        elif stop.seconds > (EMULATED_STOP_SECONDS if facts.emulated else STOP_AT_ONCE_SECONDS):
            findings.append(f"The server takes {stop.seconds:.1f} s to stop {stop.phase}.")
    seconds = max(stop.seconds for stop in facts.stops)
    return Verdict(f"stopped within {seconds:.1f} s{', emulated' if facts.emulated else ''}", findings)


def _health_findings(facts: ImageFacts) -> Iterator[str]:
    command = facts.image.healthcheck
    if not command:
        yield "The image has no health check."
        return
    absent = list(_program_findings(facts, "health check", command[0]))
    yield from absent
    if absent:
        return
    for server in facts.servers:
        health = server.start.health
        if health is not None and health.exit_code:
            yield f"The health check does not follow {server.path} to the port it was given: {last_line(health)}"
    if facts.shell and facts.shell.health and facts.shell.health.exit_code:
        yield (
            "The health check fails a container whose first process is another program: "
            f"{last_line(facts.shell.health)}"
        )


def _program_findings(facts: ImageFacts, what: str, program: str) -> Iterator[str]:
    entry = which(facts.files, program, facts.image.environment.get("PATH", ""))
    if entry is None:
        yield f"The {what}'s program {program} is not in the image."
    elif closed := blocked_by(facts.files, entry, 0o001):
        yield f"The {what}'s program {program} cannot be executed by all: {closed.path} has mode {closed.mode:04o}."


def _cpu_backend_findings(facts: ImageFacts) -> Iterator[str]:
    for directory in sorted({posixpath.dirname(server.path) for server in facts.servers}):
        if posixpath.basename(directory) in STATIC_BACKENDS:
            continue
        if layers.resolve(facts.files, f"{directory}/libggml-cpu.so"):
            yield f"{directory}/libggml-cpu.so is a CPU backend for one kind of processor, that of the build machine."
        wanted = CPU_BACKENDS[facts.platform] if facts.platform else ()
        absent = [name for name in wanted if not layers.resolve(facts.files, f"{directory}/libggml-cpu-{name}.so")]
        if absent:
            yield f"{directory} lacks {len(absent)} of the {len(wanted)} portable CPU backends: {some(absent)}."
