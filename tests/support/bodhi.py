"""BodhiApp's images and program: Dockerfiles generated from our data of BodhiApp, and a stand-in for `bodhi`.

Everything is generated from the data (`base_images.recipes.consumer`), so that the tests try the data: the stand-in
starts llama-server with the arguments in /app/defaults.yaml, as `bodhi` does.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from base_images.adapters.container import ContainerSpec
from base_images.adapters.engine import Engine, Image
from base_images.recipes import consumer
from base_images.smoke import checks_http, checks_server, model
from base_images.smoke import server as servers
from base_images.smoke.checks_http import Target
from base_images.smoke.model import TensorType
from tests.support import images

DATA = consumer.load()
MODEL = "/model.gguf"

TEMPLATE = """\
# syntax=docker/dockerfile:1

ARG APP_BINARY_IMAGE
FROM ${{APP_BINARY_IMAGE}} AS app-binary

FROM {image} AS runtime

FROM runtime
USER root
COPY --from=app-binary /app/bodhi /app/bodhi
RUN chown llama:llama /app/bodhi && chmod +x /app/bodhi
ENV {environment}
ARG BODHI_VERSION
ARG BODHI_COMMIT_SHA
{defaults}
RUN mkdir -p /data/bodhi_home /data/hf_home
RUN chown -R llama:llama /data
USER llama
WORKDIR /app
EXPOSE {port}
HEALTHCHECK --interval=30s --timeout=10s --start-period=5s --retries=3 \\
    CMD curl -f http://localhost:{port}/ping || exit 1
ENTRYPOINT ["/app/bodhi", "serve"]
"""

COPY = """\
COPY <<EOF /app/defaults.yaml
# defaults
{settings}
EOF
"""
CAT = """\
RUN cat > /app/defaults.yaml << EOF
{settings}
EOF
"""
BY_PLATFORM = """\
ARG TARGETARCH
RUN case "$TARGETARCH" in \\
      "arm64") export EXEC_TARGET="aarch64-unknown-linux-gnu" ;; \\
      "amd64"|*) export EXEC_TARGET="x86_64-unknown-linux-gnu" ;; \\
    esac && \\
    cat > /app/defaults.yaml << EOF
{settings}
EOF
"""


def dockerfile(name: str) -> str:
    """Returns a Dockerfile with the facts that the data has of one of BodhiApp's."""
    facts = DATA.dockerfiles[name]
    by_platform = facts.settings["BODHI_EXEC_TARGET"].startswith("$")
    copied = any(line.startswith("copy << =") for line in facts.instructions)
    variables = sorted(line.removeprefix("env ") for line in facts.instructions if line.startswith("env "))
    return TEMPLATE.format(
        image=facts.image,
        environment=" ".join(variable.replace(" = ", "=") for variable in variables),
        defaults=(BY_PLATFORM if by_platform else COPY if copied else CAT).format(settings=_yaml(facts.settings)),
        port=facts.settings["BODHI_PORT"],
    )


def _yaml(settings: Mapping[str, str]) -> str:
    return "\n".join(f"{key}: {json.dumps(value)}" for key, value in settings.items())


def checkout(directory: Path) -> Path:
    """Writes a checkout of BodhiApp that agrees with our data, and returns its path."""
    devops = directory / "devops"
    devops.mkdir(parents=True)
    for name in DATA.dockerfiles:
        (devops / f"{name}.Dockerfile").write_text(dockerfile(name), encoding="utf-8")
    (devops / "app-binary.Dockerfile").write_text("FROM rust AS build\nWHATEVER\n", encoding="utf-8")
    server = directory / "crates/llama_server_proc/src/server.rs"
    server.parent.mkdir(parents=True)
    options = "".join(f'    args.push("{option}".to_string());\n' for option in DATA.server.options)
    server.write_text(
        f"fn to_args() {{\n{options}}}\nfn wait() {{\n    let max_attempts = {DATA.server.attempts};\n"
        f'    get(format!("{{}}{DATA.server.health}", self.base_url))\n}}\n'
        '#[cfg(test)]\nmod tests { "--ctx-size" }\n',
        encoding="utf-8",
    )
    return directory


# What `bodhi` does with llama-server, in Perl: every Debian and Ubuntu base image has perl-base.
STAND_IN = r"""#!/usr/bin/perl
use strict; use warnings; use IO::Socket::INET; use IO::Select;
$| = 1;
open my $file, '<', '/app/defaults.yaml' or die "defaults: $!";
my %set = map { /^(\w+): "?([^"]*)"?$/ ? ($1, $2) : () } <$file>;
$set{$_} = $ENV{$_} for grep { exists $ENV{$_} } keys %set;
open my $note, '>>', "$set{BODHI_HOME}/starts" or die "$set{BODHI_HOME}/starts: $!\n";
my $child = 0;
$SIG{TERM} = sub { kill 'KILL', $child if $child; exit 0 };

sub free_port {
    my $socket = IO::Socket::INET->new(Listen => 1, LocalAddr => '127.0.0.1') or die $!;
    return $socket->sockport;
}

sub healthy {
    my $socket = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $_[0]) or return 0;
    print $socket "GET HEALTH HTTP/1.0\r\n\r\n";
    return (<$socket> // '') =~ / 200 /;
}

sub start {
    my ($variant) = @_;
    my $port = free_port();
    my %own = (alias => 'bodhi', model => $ENV{MODEL}, port => $port);
    my @words = map { s/\{(\w+)\}/$own{$1}/r } qw(COMMAND);
    push @words, split ' ', "$set{BODHI_LLAMACPP_ARGS} " . ($set{'BODHI_LLAMACPP_ARGS_' . uc $variant} // '');
    my $program = "$set{BODHI_EXEC_LOOKUP_PATH}/$set{BODHI_EXEC_TARGET}/$variant/$set{BODHI_EXEC_NAME}";
    print "starting $program @words\n";
    $child = fork // die $!;
    unless ($child) { exec { $program } $program, @words or exit 127 }
    for (1 .. ATTEMPTS) {
        return $port if healthy($port);
        if (waitpid($child, 1) == $child) {
            print "the server of $variant ended with ", $? >> 8, "\n";
            return $child = 0;
        }
        sleep 1;
    }
    kill 'KILL', $child;
    return 0;
}

my $port = 0;
for my $variant (split /,/, $set{BODHI_EXEC_VARIANTS}) {
    last if $port = start($variant);
}
$port or die "no server started\n";
print $note "$set{BODHI_EXEC_VARIANTS}\n"; close $note;
my $listening = IO::Socket::INET->new(Listen => 16, LocalAddr => '0.0.0.0', LocalPort => $set{BODHI_PORT}) or die $!;
print "serving\n";
my $died = 0;
$SIG{CHLD} = sub { while ((my $ended = waitpid -1, 1) > 0) { $died = 1 if $ended == $child } };
until ($died) {
    my $client = $listening->accept or next;
    next if fork;
    sysread $client, my $head, 65536;
    if ($head =~ m{^GET /ping }) {
        print $client "HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\npong";
        exit;
    }
    my $server = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port) or exit 1;
    syswrite $server, $head;
    my %other = ($client => $server, $server => $client);
    my $select = IO::Select->new($client, $server);
    while (my @ready = $select->can_read) {
        for my $from (@ready) {
            sysread $from, my $bytes, 65536 or exit;
            syswrite $other{$from}, $bytes;
        }
    }
}
die "the server ended\n";
"""


def stand_in() -> bytes:
    """Returns the stand-in for BodhiApp's program."""
    text = STAND_IN.replace("COMMAND", " ".join(DATA.server.arguments)).replace("ATTEMPTS", str(DATA.server.attempts))
    return text.replace("GET HEALTH", f"GET {DATA.server.health}").encode()


@contextlib.contextmanager
def built(
    engine: Engine, text: str, files: Mapping[str, bytes] | None = None, arguments: Mapping[str, str] | None = None
) -> Iterator[Image]:
    """Builds a Dockerfile with BuildKit, yields the image, and removes it afterwards."""
    image_id = images.build(engine, {"Dockerfile": text.encode(), **(files or {})}, arguments=arguments)
    try:
        yield engine.image(image_id)
    finally:
        engine.remove_image(image_id)


@contextlib.contextmanager
def tagged(engine: Engine, image: Image) -> Iterator[Image]:
    """Yields the image with a tag, for a Dockerfile's FROM."""
    reference = "llama-cpp-test-bodhi:base"
    engine.tag(image.id, reference)
    try:
        yield engine.image(reference)
    finally:
        engine.remove_image(reference)


@contextlib.contextmanager
def child(engine: Engine, base: Image, name: str) -> Iterator[Image]:
    """Builds BodhiApp's image on a base image, from a Dockerfile generated from the data, and yields it."""
    facts = DATA.dockerfiles[name]
    platform = engine.platform()
    text = dockerfile(name).replace(facts.image, base.tags[0]).replace("# syntax=docker/dockerfile:1\n", "")
    if int(engine.info().version.partition(".")[0]) < 23:  # its Dockerfile frontend knows no heredocs
        before, after = text.partition("ARG BODHI_COMMIT_SHA\n")[0], text.partition("\nRUN mkdir -p /data")[2]
        settings = _yaml({**facts.settings, "BODHI_EXEC_TARGET": platform.triple}).splitlines()
        printf = "RUN printf '%s\\n' " + " ".join(f"'{line}'" for line in settings) + " > /app/defaults.yaml"
        text = f"{before}{printf}\nRUN mkdir -p /data{after}"
    binary = "llama-cpp-test-bodhi:binary"
    with built(engine, "FROM scratch\nCOPY bodhi /app/bodhi\n", {"bodhi": stand_in()}) as program:
        engine.tag(program.id, binary)
        try:
            with built(engine, text, arguments={"APP_BINARY_IMAGE": binary}) as image:
                yield image
        finally:
            engine.remove_image(binary)


def _spec(image: Image, environment: Mapping[str, str] | None, volume: str | None) -> ContainerSpec:
    return ContainerSpec(
        image=image.id,
        environment={"MODEL": MODEL, **(environment or {})},
        volumes={volume: "/data"} if volume else {},
        publish=int(DATA.dockerfiles["cpu"].settings["BODHI_PORT"]),
        read_only=False,
        resource="smoke",
    )


def served(
    engine: Engine, image: Image, environment: Mapping[str, str] | None = None, *, volume: str | None = None
) -> str:
    """Starts a child, passes a chat, an embedding and a completion through it, stops it, and returns its log."""
    answer = model.known_answer(TensorType.Q8_0)
    spec = _spec(image, environment, volume)
    with engine.container(spec, files={MODEL: answer.gguf}) as container:
        container.start()
        servers.wait(
            lambda: container.logs().endswith("serving\n"), state=container.state, log=container.logs, timeout=120
        )
        assert spec.publish
        target = Target(url=servers.url(container, spec.publish), alias="bodhi", answer=answer)
        for check in (checks_http.check_chat, checks_http.check_embeddings, checks_http.check_completion):
            check(target)
        healthy = container.execute(image.healthcheck)
        assert healthy.exit_code == 0, healthy.output
        checks_server.check_sigterm(container)
        return container.logs()


def fails(
    engine: Engine, image: Image, environment: Mapping[str, str] | None = None, *, volume: str | None = None
) -> str:
    """Starts a child, checks that it fails, and returns its log."""
    with engine.container(_spec(image, environment, volume)) as container:
        container.start()
        assert container.wait(120) not in {0, None}, container.logs()
        return container.logs()


def run(engine: Engine, image: Image, volume: str, script: str) -> str:
    """Runs a shell script in the volume as the image's user and returns its output."""
    spec = ContainerSpec(
        image=image.id,
        entrypoint=("sh", "-c", script),
        working_directory="/data",
        volumes={volume: "/data"},
        resource="smoke",
    )
    result = engine.probe(spec)
    assert result.exit_code == 0, result.output
    return result.stdout
