"""What is told of a new version of llama.cpp: the verdict, what to act on, and the rest."""

from __future__ import annotations

from dataclasses import replace

import pytest

from base_images.recipes import argument_changes, mirror, upstream_report
from base_images.recipes.mirror import Record
from base_images.recipes.upstream_report import Item, Kind, Telling
from tests.unit.recipes.conftest import UPSTREAM
from tests.unit.recipes.test_mirror import HARMLESS, MUTATIONS, RECORDS, our_recipe, replaced

EVERYWHERE = tuple(replace(record, variant="all") for record in RECORDS)


def told(cuda: str = UPSTREAM, *, musa: str = UPSTREAM, zendnn: str = UPSTREAM) -> Telling:
    """Tells of an upstream that moved from `UPSTREAM`, in its variants for cuda, musa and zendnn, to these files."""
    before = dict.fromkeys(("cuda", "musa", "zendnn"), UPSTREAM)
    after = {"cuda": cuda, "musa": musa, "zendnn": zendnn}
    result = mirror.check(after, dict.fromkeys(("cuda", "musa"), our_recipe()), EVERYWHERE)
    return upstream_report.tell("b1 → b2", result, mirror.compare_refs(before, after))


def sentences(telling: Telling) -> list[str]:
    return [f"{item.kind}, {item.place}: {item.text}" for item in telling.of(*Kind)]


DEVEL, RUNTIME = (f"docker.io/nvidia/cuda:{{}}-{name}-ubuntu24.04" for name in ("devel", "runtime"))

# Changes by upstream for cuda alone, and what is to port.
WORDS: dict[str, tuple[str, str, list[str]]] = {
    "base": (
        "NODE_VERSION=24",
        "NODE_VERSION=26",
        [("base image of `web`: upstream has `docker.io/node:26`, ours is `docker.io/node:24` (by ARG NODE_VERSION)")],
    ),
    "base of two stages": (
        "CUDA_VERSION=12.8.1",
        "CUDA_VERSION=13.1.0",
        [
            (
                f"base image of `base`: upstream has `{RUNTIME.format('13.1.0')}`, ours is "
                f"`{RUNTIME.format('12.8.1')}`; of `build`: upstream has `{DEVEL.format('13.1.0')}`, ours is "
                f"`{DEVEL.format('12.8.1')}` (by ARG CUDA_VERSION, UBUNTU_VERSION)"
            )
        ],
    ),
    "name of a base": (
        "DEV_IMAGE=docker.io/nvidia/cuda:",
        "DEV_IMAGE=quay.io/cuda:",
        [
            (
                f"base image of `build`: upstream has `quay.io/cuda:12.8.1-devel-ubuntu24.04`, ours is "
                f"`{DEVEL.format('12.8.1')}` (by ARG CUDA_VERSION, UBUNTU_VERSION, DEV_IMAGE)"
            )
        ],
    ),
    "flag flipped": (
        "-DGGML_NATIVE=OFF",
        "-DGGML_NATIVE=ON",
        ["`build: cmake build -DGGML_NATIVE`: upstream had `OFF` and now has `ON`, ours has `OFF`"],
    ),
    "flag added": (
        "-DGGML_CUDA=ON",
        "-DGGML_CUDA=ON -DGGML_CUDA_NCCL=OFF",
        ["`build: cmake build -DGGML_CUDA_NCCL = OFF`: new at upstream, ours lacks it"],
    ),
    "flag dropped": (
        " -DGGML_BACKEND_DL=ON",
        "",
        ["`build: cmake build -DGGML_BACKEND_DL = ON`: gone at upstream, ours has it"],
    ),
    "preset": (
        "cmake -S . -B build",
        "cmake --preset release -S . -B build",
        ["`build: cmake build --preset = release`: new at upstream, ours lacks it"],
    ),
    "package added": ("cmake git", "cmake ninja git", ["`build: apt ninja`: new at upstream, ours lacks it"]),
    "package dropped": (" curl ffmpeg", " ffmpeg", ["`base: apt curl`: gone at upstream, ours has it"]),
    "package with a record for all dropped": (
        " curl ffmpeg",
        " curl",
        [
            (
                "the recorded difference `- base: apt ffmpeg` is gone here and not in the other variants: see what "
                "upstream changed here, and let the record name its variants"
            )
        ],
    ),
    "ARG": (
        "CUDA_DOCKER_ARCH=default",
        "CUDA_DOCKER_ARCH=all",
        ["`build: arg CUDA_DOCKER_ARCH`: upstream had `default` and now has `all`, ours has `default`"],
    ),
    "ENV": (
        "CXX=g++-14",
        "CXX=clang",
        ["`build: env CXX`: upstream had `g++-14` and now has `clang`, ours has `g++-14`"],
    ),
    "new ENV": (
        "ENV LLAMA_ARG_HOST=0.0.0.0",
        "ENV LLAMA_ARG_HOST=0.0.0.0 LLAMA_ARG_PORT=8080",
        ["`runtime: env LLAMA_ARG_PORT = 8080`: new at upstream, ours lacks it"],
    ),
    "mount": (
        "RUN npm ci",
        "RUN --mount=type=bind,from=0,target=/x npm ci",
        ["`web: run option --mount=type=bind,from=web,target=/x`: new at upstream, ours lacks it"],
    ),
    "link": ("COPY . .", "COPY --link . .", ["`build: copy .`: upstream had `.` and now has `. --link`, ours has `.`"]),
    "download": (
        "COPY . .",
        "COPY . .\nADD https://example.org/a//b.tgz /opt/",
        ["`build: add https://example.org/a//b.tgz = /opt`: new at upstream, ours lacks it"],
    ),
    "stage by number": (
        "COPY --from=build /app/lib/",
        "COPY --from=0 /app/lib/",
        [
            "`base: copy --from=build /app/lib = /app`: gone at upstream, ours has it",
            "`base: copy --from=web /app/lib = /app`: new at upstream, ours lacks it",
        ],
    ),
    "script": (
        "RUN npm ci",
        "RUN <<BUILD-IT\nset -eux\nnpm ci\nnpm audit\nBUILD-IT",
        [
            "`web: run npm audit`: new at upstream, ours lacks it",
            "`web: run set -u`: new at upstream, ours lacks it",
        ],
    ),
    "file of another name": (
        "COPY . .",
        "COPY . .\nCOPY <<a.conf /etc/\nurl: https://example.org\na.conf",
        [
            "`build: copy <<a.conf = /etc`: new at upstream, ours lacks it",
            "`build: file /etc/a.conf url = https://example.org`: new at upstream, ours lacks it",
        ],
    ),
    "health check": (
        "localhost:8080",
        "localhost:9931",
        [
            (
                '`runtime: healthcheck`: upstream had `--interval=5m CMD ["curl", "-f", "http://localhost:8080/health"]`'
                ' and now has `--interval=5m CMD ["curl", "-f", "http://localhost:9931/health"]`, ours has '
                '`--interval=5m CMD ["curl", "-f", "http://localhost:8080/health"]`'
            )
        ],
    ),
    "entry point": (
        'ENTRYPOINT [ "/app/llama-server" ]',
        'ENTRYPOINT [ "/app/llama", "serve" ]',
        [
            (
                '`runtime: entrypoint`: upstream had `["/app/llama-server"]` and now has `["/app/llama", "serve"]`, '
                'ours has `["/app/llama-server"]`'
            )
        ],
    ),
    "port": (
        "EXPOSE 8080",
        "EXPOSE 9931",
        [
            "`runtime: expose 8080`: gone at upstream, ours has it",
            "`runtime: expose 9931`: new at upstream, ours lacks it",
        ],
    ),
    "user": ("USER 1000", "USER 2000", ["`runtime: user`: upstream had `1000` and now has `2000`, ours has `1000`"]),
    "shell that is none": (
        "RUN npm ci",
        "RUN npm ci 'x",
        [
            (
                "unreadable: .devops/cuda.Dockerfile line 16: the shell cannot be parsed: 1:8: reached EOF without "
                "closing quote '''"
            )
        ],
    ),
    "instruction that is none": (
        "COPY . .",
        "COPY . .\nFETCH x",
        ["unreadable: .devops/cuda.Dockerfile line 42: FETCH is not a Dockerfile instruction that is read here"],
    ),
}


@pytest.mark.parametrize("name", WORDS)
def test_what_is_to_port_is_said_in_words_with_its_variant(name: str) -> None:
    old, new, expected = WORDS[name]
    telling = told(replaced(UPSTREAM, old, new))
    assert [(item.place, item.text) for item in telling.items] == [("cuda", text) for text in expected]
    assert telling.verdict == f"b1 → b2: {len(expected)} to port, 0 break the consumer, 0 for information"


@pytest.mark.parametrize("name", MUTATIONS)
def test_each_change_is_told_once(name: str) -> None:
    old, new, _ = MUTATIONS[name]
    telling = told(replaced(UPSTREAM, old, new))
    assert {item.kind for item in telling.items} >= {Kind.PORT}
    assert {item.where for item in telling.items} == {("cuda",)}
    assert len({item.text for item in telling.items}) == len(telling.items)
    # A variant that we do not ship is for information.
    elsewhere = told(zendnn=replaced(UPSTREAM, old, new))
    assert {(item.kind, item.place) for item in elsewhere.items} == {(Kind.INFORMATION, "zendnn (not shipped)")}


MORE_HARMLESS: dict[str, tuple[str, str]] = {
    "heredoc": ("RUN npm ci", "RUN <<EOF\nset -e\nnpm ci\nEOF"),
    "heredoc for &&": (
        " && ldconfig",
        "\nRUN <<'END'\nset -ex\nldconfig\nEND",
    ),
    "set -e and semicolons": ("RUN mkdir -p /app/lib && \\", "RUN set -e; mkdir -p /app/lib; \\"),
    "stage by number": ("COPY --from=web ", "COPY --from=0 "),
    "stage by number later": ("COPY --from=build /app/lib/", "COPY --from=1 /app/lib/"),
    "stage in upper case": ("COPY --from=web ", "COPY --from=WEB "),
}


@pytest.mark.parametrize("name", [*HARMLESS, *MORE_HARMLESS])
def test_nothing_is_told_of_equivalent_forms(name: str) -> None:
    text = replaced(UPSTREAM, *({**HARMLESS, **MORE_HARMLESS}[name]))
    telling = told(text, musa=text, zendnn=text)
    assert telling.items == ()
    assert telling.verdict == "b1 → b2: 0 to port, 0 break the consumer, 0 for information"
    assert telling.conclusion == "Our recipes need no change, 6 differences are intended."


def test_one_change_of_several_variants_is_one_item() -> None:
    newer = replaced(UPSTREAM, "NODE_VERSION=24", "NODE_VERSION=26")
    [port] = sentences(told(newer, musa=newer, zendnn=newer))
    assert port == (
        "to port, cuda, musa: base image of `web`: upstream has `docker.io/node:26`, ours is `docker.io/node:24` "
        "(by ARG NODE_VERSION)"
    )
    assert sentences(told(zendnn=newer)) == [
        (
            "for information, zendnn (not shipped): base image of `web`: `docker.io/node:24` → `docker.io/node:26` "
            "(by ARG NODE_VERSION)"
        )
    ]
    # Another change of the one that we do not ship is told beside it.
    other = replaced(newer, "CUDA_DOCKER_ARCH=default", "CUDA_DOCKER_ARCH=all")
    assert sentences(told(newer, zendnn=other))[1:] == [
        "for information, zendnn (not shipped): `build: arg CUDA_DOCKER_ARCH`: `default` → `all`"
    ]


@pytest.mark.parametrize("bad", ["RUN echo 'x", "FETCH x", 'ENV A="x', "#" * 70_000])
def test_what_cannot_be_read_is_one_item_of_one_variant(bad: str) -> None:
    text = replaced(UPSTREAM, "FROM base AS server\n", f"FROM base AS server\n{bad}\n")
    telling = told(zendnn=text)
    [item] = telling.items
    assert (item.kind, item.place) == (Kind.INFORMATION, "zendnn (not shipped)")
    assert item.text.startswith("unreadable: .devops/zendnn.Dockerfile ")
    [item] = told(text).items
    assert (item.kind, item.place) == (Kind.PORT, "cuda")


def test_what_is_beside_the_unreadable_is_told() -> None:
    text = replaced(UPSTREAM, "RUN npm ci", "RUN npm ci 'x")
    text = replaced(text, "EXPOSE 8080", "EXPOSE 8080 9931").replace(" ffmpeg", "")
    assert [item.text.partition(":")[0] for item in told(text).items] == [
        "`runtime",
        "unreadable",
        "the recorded difference `- base",
    ]


def test_a_record_for_all_is_checked_in_each_variant() -> None:
    def lost(records: tuple[Record, ...]) -> list[tuple[str, tuple[str, ...]]]:
        after = {"cuda": UPSTREAM.replace(" ffmpeg", ""), "musa": UPSTREAM}
        result = mirror.check(after, dict.fromkeys(("cuda", "musa"), our_recipe()), records)
        assert result.ok is not bool(result.lost)
        assert [entry["lost_in"] for entry in result.as_dict()["lost"]] == [list(each.variants) for each in result.lost]
        return [(each.record.key, each.variants) for each in result.lost]

    assert lost(EVERYWHERE) == [("- base: apt ffmpeg", ("cuda",))]
    assert lost((replace(EVERYWHERE[0], only=("musa",)), *EVERYWHERE[1:])) == []


def test_a_record_that_names_its_variants_is_for_no_other() -> None:
    texts = dict.fromkeys(("cuda", "musa"), UPSTREAM)
    records = (replace(EVERYWHERE[0], only=("musa",)), *EVERYWHERE[1:])
    result = mirror.check(texts, dict.fromkeys(("cuda", "musa"), our_recipe()), records)
    telling = upstream_report.tell("b1", result)
    assert sentences(telling) == [
        "to port, cuda: `base: apt ffmpeg`: upstream has it, ours lacks it",
        "for information, cpu, rocm, vulkan, intel, cann: no recipe here yet",
    ]
    assert telling.verdict == "b1: 1 to port, 1 for information"
    assert telling.as_dict()["verdict"]["breaks_consumer"] is None


def breaking() -> Telling:
    changes = (
        argument_changes.Change(
            kind=argument_changes.Kind.GONE,
            names=("--mmap", "--no-mmap"),
            detail="refused",
            used=True,
            breaks=("--no-mmap",),
        ),
        argument_changes.Change(
            kind=argument_changes.Kind.CHANGED,
            names=("--split-mode",),
            detail="values no longer row",
            used=True,
            breaks=("-sm row",),
        ),
        argument_changes.Change(
            kind=argument_changes.Kind.CHANGED, names=("--port",), detail="default 1 -> 2", used=True
        ),
    )
    changed = mirror.RefsReport(
        changes={},
        appeared=("new",),
        disappeared=(),
        arguments=argument_changes.Report(changes=changes, breaks=("--no-mmap",)),
    )
    return upstream_report.tell("b1 → b2", mirror.check({}, {}, ()), changed)


def test_what_breaks_the_consumer_comes_first() -> None:
    telling = breaking()
    assert telling.verdict.startswith("b1 → b2: 0 to port, 2 break the consumer, ")
    assert sentences(telling)[:3] == [
        (
            "breaks the consumer, llama-server: `--mmap`, `--no-mmap` gone: refused; BodhiApp passes `--no-mmap`: its "
            "servers do not start"
        ),
        (
            "breaks the consumer, llama-server: `--split-mode`: values no longer row; BodhiApp passes `-sm row`: its "
            "servers do not start"
        ),
        "for information, llama-server: `--port` (no change for BodhiApp, which passes it): default 1 -> 2",
    ]
    assert telling.conclusion == (
        "Until BodhiApp passes other arguments, contract and smoke test of it fail, and no image of it becomes latest. "
        "Our recipes need no change."
    )


def test_the_text_of_a_pull_request() -> None:
    text = upstream_report.as_markdown(breaking(), ["Name the sdist."])
    assert text.startswith(
        "**b1 → b2: 0 to port, 2 break the consumer, 2 for information**\n\n## Breaks the consumer\n\n- "
    )
    folded = text.partition("<details><summary>2 for information</summary>\n\n")[2]
    assert folded.startswith(
        "- **llama-server**: `--port` (no change for BodhiApp, which passes it): default 1 -\\> 2\n"
    )
    assert folded.endswith("\n</details>\n")
    assert text.index("Name the sdist.") < text.index("<details>")
    assert "Nothing" not in text
    quiet = upstream_report.as_markdown(told())
    assert quiet == (
        "**b1 → b2: 0 to port, 0 break the consumer, 0 for information**\n\n"
        "Our recipes need no change, 6 differences are intended.\n"
    )


def test_pipes_stay_as_they_are_in_a_list() -> None:
    item = Item(kind=Kind.PORT, where=("cpu",), text="`build: run a | b`: new at upstream, ours lacks it")
    text = upstream_report.as_markdown(Telling(subject="b1", items=(item,), intended=0, between=False))
    assert "- **cpu**: `build: run a | b`: new" in text


def test_json_has_the_verdict_and_its_counts() -> None:
    told_ = breaking().as_dict()
    assert told_["verdict"] == {
        "text": breaking().verdict,
        "to_port": 0,
        "breaks_consumer": 2,
        "information": 2,
    }
    assert [item["kind"] for item in told_["items"]] == [*["breaks the consumer"] * 2, *["for information"] * 2]
