"""The consumer's data, its arguments, and a checkout of it compared with the data."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from base_images import settings, variants, versions
from base_images.contract import rows_layout
from base_images.doctor import machine
from base_images.errors import SourceError, UsageError
from base_images.recipes import consumer, consumer_checkout, dockerfile
from base_images.recipes.consumer import Answer, Refusal, Refused
from base_images.recipes.consumer_checkout import Change
from tests.support import bodhi, clones, documents

DATA = consumer.load()
VARIANTS = pytest.mark.parametrize("variant", variants.VARIANTS, ids=lambda variant: variant.name)


# --- the data ---


@VARIANTS
def test_every_variant_has_a_dockerfile_with_the_directories_of_the_table(variant: variants.Variant) -> None:
    dockerfile = DATA.dockerfiles[variant.name]
    assert dockerfile.image == f"{settings.load().registry}:{versions.latest_tag(variant.name)}"
    assert dockerfile.directories == variant.directories
    assert dict(DATA.starts(variant.name)).keys() == set(variant.directories)
    assert dockerfile.settings["BODHI_EXEC_LOOKUP_PATH"] == "/app/bin"


def test_the_volumes_belong_to_the_user_of_the_images() -> None:
    assert DATA.volume_owner == rows_layout.LLAMA_ID
    assert set(DATA.volumes) == {DATA.dockerfiles["cpu"].settings[name] for name in ("BODHI_HOME", "HF_HOME")}


@VARIANTS
def test_working_arguments_have_no_refused_one(variant: variants.Variant) -> None:
    refused = {refusal.argument: refusal for refusal in DATA.refusals_of(variant.name)}
    for directory, passed in DATA.starts(variant.name):
        works = DATA.working(variant.name, directory)
        for group in consumer.grouped(works):
            assert group[0] not in refused or group == refused[group[0]].instead
        if not refused:
            assert works == passed


def test_the_cpu_arguments_are_those_of_the_user_guide() -> None:
    assert DATA.working("cpu", "cpu") == ("--jinja", "--no-webui", "--threads", "4", "--no-mmap")
    assert DATA.command(alias="a", model="/m", port=1) == (
        *("--alias", "a", "--model", "/m", "--embeddings", "--port", "1"),
    )
    assert {"--no-mmap", "--mlock", "--flash-attn", "--alias"} <= DATA.options.keys()
    assert DATA.options["--split-mode"] == {("row",)}
    assert DATA.options["--jinja"] == {()}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[server]", "[server", "is not valid TOML"),
        ("attempts = 300\n", "", "lacks something, or has it in another form"),
        ("attempts = 300", 'attempts = "many"', "lacks something, or has it in another form"),
        ('variants = ["rocm"]', 'variants = ["roc"]', "There is no variant|no Dockerfile on images of roc"),
        (
            'argument = "--hipblas"',
            'argument = "--hip"',
            "--hip is refused for rocm, whose Dockerfile does not pass it",
        ),
    ],
)
def test_invalid_data_is_a_usage_error(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / consumer.FILE
    path.parent.mkdir()
    text = (settings.ROOT / consumer.FILE).read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(UsageError, match=message):
        consumer.load(tmp_path)


def test_missing_data_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"consumer\.toml cannot be read \(No such file or directory\): restore it"):
        consumer.load(tmp_path)


# --- arguments ---


def test_grouping_options_with_their_values() -> None:
    words = ("--n-gpu-layers", "-1", "--flash-attn", "--batch-size", "2048", "-fa", "on", "--no-mmap")
    assert consumer.grouped(words) == [
        ("--n-gpu-layers", "-1"),
        ("--flash-attn",),
        ("--batch-size", "2048"),
        ("-fa", "on"),
        ("--no-mmap",),
    ]
    assert consumer.value_of("--n-gpu-layers", words) == "-1"
    assert consumer.value_of("--flash-attn", words) is None
    assert consumer.value_of("--threads", words) is None


FLASH = Refusal(
    variants=("cuda",), argument="--flash-attn", instead=("--flash-attn", "on"), since="2025", because="it has a value"
)


@pytest.mark.parametrize(
    ("output", "argument"),
    [
        ("error: invalid argument: --no-mmap\n", "--no-mmap"),
        ("warn: x\nerror: unknown argument: -zz\nmore", "-zz"),
        ('error while handling argument "--flash-attn": error: unknown value\n\nusage:\n-fa', "--flash-attn"),
        ("srv load_model: error: invalid argument\n", None),
        ("", None),
    ],
)
def test_the_refused_argument_in_the_output_of_a_server(output: str, argument: str | None) -> None:
    found = consumer.refused(output)
    assert (found.argument if found else None) == argument


def server(refusing: Iterable[str], needing_value: Iterable[str] = ()) -> Callable[[tuple[str, ...]], tuple[int, str]]:
    """Answers as llama.cpp's parser: refuses the first unknown argument."""

    def run(words: tuple[str, ...]) -> tuple[int, str]:
        for group in consumer.grouped(words):
            if group[0] in refusing:
                return 1, f"error: invalid argument: {group[0]}\n"
            if group[0] in needing_value and len(group) == 1:
                return 1, f'error while handling argument "{group[0]}": error: unknown value\n\nusage:\n'
        return 0, "version: 1\n"

    return run


def test_ask_finds_every_refusal() -> None:
    words = ("--jinja", "--flash-attn", "--no-mmap", "--threads", "4", "--mlock")
    answer = consumer.ask("cuda", words, [FLASH], server({"--no-mmap", "--mlock"}, {"--flash-attn"}))
    assert [refusal.argument for refusal in answer.refused] == ["--flash-attn", "--no-mmap", "--mlock"]
    assert answer.failure == ""
    judged = consumer.judge([answer], [FLASH])
    assert [sentence.partition(",")[0] for sentence in judged.findings] == [
        "cuda/llama-server refuses --no-mmap",
        "cuda/llama-server refuses --mlock",
    ]
    assert len(judged.known) == 1


def test_a_refused_replacement_is_a_failure() -> None:
    answer = consumer.ask("cuda", ("--flash-attn",), [FLASH], server({"--flash-attn"}))
    assert answer.failure == "error: invalid argument: --flash-attn"
    assert "does not start with BodhiApp's arguments" in consumer.judge([answer], [FLASH]).findings[0]


@pytest.mark.parametrize(("output", "failure"), [("a\nno such file\n", "no such file"), ("", "exit code 127")])
def test_a_server_that_fails_for_another_reason(output: str, failure: str) -> None:
    assert consumer.ask("cpu", ("--jinja",), [], lambda _: (127, output)).failure == failure


def test_an_outdated_refusal_record_is_a_finding() -> None:
    taken = consumer.ask("cuda", ("--flash-attn",), [FLASH], server(()))
    [finding] = consumer.judge([taken], [FLASH]).findings
    assert finding == (
        "cuda/llama-server takes --flash-attn, which dockerfiles/consumer.toml records as refused: remove that record."
    )
    without = Answer(directory="cpu", arguments=("--jinja",), refused=())
    assert consumer.judge([without], [FLASH]).findings == ()
    other = Refused(argument="--x", sentence="error: invalid argument: --x")
    assert len(consumer.judge([Answer(directory="c", arguments=("--x",), refused=(other,))], []).findings) == 1


# --- a checkout ---


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return bodhi.checkout(tmp_path / "BodhiApp")


def changes(checkout: Path) -> list[Change]:
    return list(consumer_checkout.changes(DATA, consumer_checkout.read(checkout, DATA)))


def edit(checkout: Path, name: str, old: str, new: str) -> None:
    path = checkout / f"devops/{name}.Dockerfile"
    text = path.read_text(encoding="utf-8")
    assert re.search(old, text), text
    path.write_text(re.sub(old, new, text), encoding="utf-8")


def test_a_checkout_that_matches_the_data(checkout: Path) -> None:
    assert changes(checkout) == []
    read = consumer_checkout.read(checkout, DATA)
    assert read.unreadable == ()
    assert read.commit == ""
    clones.commit_all(checkout)
    assert re.fullmatch("[0-9a-f]{40}", consumer_checkout.read(checkout, DATA).commit)
    (checkout / ".git" / "HEAD").write_text("damaged")
    with pytest.raises(SourceError, match=r"git cannot say which commit .*not a git repository"):
        consumer_checkout.read(checkout, DATA)


MUTATIONS = [
    ("an argument's value", "cpu", "--threads 4", "--threads 6", "BODHI_LLAMACPP_ARGS_CPU"),
    ("an argument more", "cuda", "--no-mmap --mlock", "--no-mmap --mlock --no-warmup", "BODHI_LLAMACPP_ARGS_CUDA"),
    ("an argument less", "musa", " --mlock", "", "BODHI_LLAMACPP_ARGS_MUSA"),
    ("a common argument", "intel", "--jinja --no-webui", "--jinja", "BODHI_LLAMACPP_ARGS"),
    ("the lookup path", "vulkan", "/app/bin\\b", "/opt/bin", "BODHI_EXEC_LOOKUP_PATH"),
    ("the lookup order", "rocm", "rocm,cpu", "cpu,rocm", "BODHI_EXEC_VARIANTS"),
    ("a variant more to look for", "cuda", "cuda,cpu", "cuda,vulkan,cpu", "BODHI_EXEC_VARIANTS"),
    ("the program's name", "cpu", '"llama-server"', '"llama"', "BODHI_EXEC_NAME"),
    ("the triple", "multi-tenant-arm64", "aarch64-unknown-linux-gnu", "aarch64-linux", "BODHI_EXEC_TARGET"),
    ("the triple of a platform", "cann", '"aarch64-unknown', '"arm64-unknown', "variable EXEC_TARGET"),
    ("the volume's path", "cpu", "/data/hf_home", "/models", "run mkdir"),
    ("the owner of the volume", "cuda", "chown -R llama:llama /data", "chown -R bodhi /data", "run chown"),
    ("the user", "cpu", "USER llama", "USER 1000", "user"),
    ("the base image", "musa", "latest-musa", "latest-cpu", "FROM"),
    ("a digest", "cpu", "latest-cpu", "latest-cpu@sha256:" + "0" * 64, "FROM"),
    ("another registry", "cpu", "ghcr.io/bodhisearch", "quay.io/bodhi", "FROM"),
    ("the working directory", "intel", "WORKDIR /app", "WORKDIR /", "workdir"),
    ("a variable", "intel", "NEOReadDebugKeys=1", "NEOReadDebugKeys=0", "env NEOReadDebugKeys"),
    ("the health check", "cpu", "/ping", "/health", "healthcheck"),
    ("the entrypoint", "cpu", '\\["/app/bodhi", "serve"\\]', '["/app/bodhi"]', "entrypoint"),
    ("the port", "cpu", "EXPOSE 8080", "EXPOSE 1135", "expose 8080"),
    ("a heredoc written by another instruction", "cuda", "COPY <<EOF /app", "RUN cat <<EOF > /app", "copy <<"),
    ("a setting more", "cpu", "\nHF_HOME: ", '\nLLAMA_ARG_MMAP: "0"\nHF_HOME: ', "LLAMA_ARG_MMAP"),
    ("a setting less", "cpu", "\nHF_HOME: .*", "", "HF_HOME"),
    ("a step more", "rocm", "USER llama", "RUN rm -r /app/bin\nUSER llama", "run rm -r /app/bin"),
]


@pytest.mark.parametrize(
    ("name", "old", "new", "what"), [case[1:] for case in MUTATIONS], ids=[case[0] for case in MUTATIONS]
)
def test_a_change_is_reported(checkout: Path, name: str, old: str, new: str, what: str) -> None:
    edit(checkout, name, old, new)
    found = changes(checkout)
    assert any(change.what.startswith(what) and change.where == (name,) for change in found), found
    assert len({change.what for change in found}) == len(found)


HARMLESS = [
    ("a comment", "cpu", "USER root", "# as root\nUSER root"),
    ("a comment in the settings", "cuda", "# defaults", "# other defaults\n\n# for CUDA"),
    ("a comment after a setting", "cuda", '"0.0.0.0"', '"0.0.0.0"  # all'),
    ("the order of variables", "intel", "ENV (\\S+) (\\S+) (\\S+)", r"ENV \3\nENV \2\nENV \1"),
    ("the order of settings", "cpu", r"(BODHI_HOME: .*)\n(HF_HOME: .*)", r"\2\n\1"),
    ("quotes", "vulkan", 'HF_HOME: "/data/hf_home"', "HF_HOME: /data/hf_home"),
    ("white space", "musa", "RUN chown llama", "RUN   chown   llama"),
    ("white space in the settings", "cpu", "BODHI_PORT: ", "BODHI_PORT:   "),
    ("lines", "rocm", " && chmod", " && \\\n    chmod"),
    ("blank lines", "cann", "USER llama", "\n\nUSER llama\n"),
    ("the heredoc's mark", "cuda", "EOF", "YAML"),
]


@pytest.mark.parametrize(("name", "old", "new"), [case[1:] for case in HARMLESS], ids=[case[0] for case in HARMLESS])
def test_equivalent_forms_are_not_reported(checkout: Path, name: str, old: str, new: str) -> None:
    edit(checkout, name, old, new)
    assert changes(checkout) == []


def test_the_same_change_in_all_dockerfiles_is_reported_once(checkout: Path) -> None:
    for name in DATA.dockerfiles:
        edit(checkout, name, "--jinja --no-webui", "--jinja")
    same = [change for change in changes(checkout) if change.after == "--jinja"]
    assert [change.where for change in same] == [
        tuple(name for name in DATA.dockerfiles if name not in {"rocm", "vulkan"})
    ]


def test_a_new_and_a_removed_dockerfile(checkout: Path) -> None:
    devops = checkout / "devops"
    shutil.copy(devops / "cuda.Dockerfile", devops / "cuda13.Dockerfile")
    edit(checkout, "cuda13", "latest-cuda", "latest-cuda13")
    (devops / "musa.Dockerfile").unlink()
    found = {change.where: (change.before, change.after) for change in changes(checkout)}
    assert found == {
        ("cuda13",): ("", "FROM ghcr.io/bodhisearch/llama.cpp:latest-cuda13"),
        ("musa",): ("FROM ghcr.io/bodhisearch/llama.cpp:latest-musa", ""),
    }


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ('"--embeddings"', '"--embedding"', "options"),
        ("max_attempts = 300", "max_attempts = 60", "attempts"),
        ("/health", "/healthz", "health"),
    ],
)
def test_a_change_of_the_server_source_is_reported(checkout: Path, old: str, new: str, what: str) -> None:
    path = checkout / "crates/llama_server_proc/src/server.rs"
    path.write_text(path.read_text().replace(old, new))
    [change] = changes(checkout)
    assert change.what == what
    path.write_text(f"// a comment\n{path.read_text().replace(new, old)}")
    assert changes(checkout) == []
    path.unlink()
    assert {change.after for change in changes(checkout)} == {""}


def test_an_unreadable_dockerfile_hides_no_other(checkout: Path) -> None:
    edit(checkout, "musa", "USER root", "RUN if true; then")
    edit(checkout, "cpu", "--threads 4", "--threads 6")
    read = consumer_checkout.read(checkout, DATA)
    [sentence] = read.unreadable
    assert "devops/musa.Dockerfile line" in sentence
    assert [change.where for change in consumer_checkout.changes(DATA, read)] == [("cpu",)]
    report = consumer_checkout.report(DATA, read)
    assert not report.ok
    text = consumer_checkout.markdown(report)
    assert "cpu: `BODHI_LLAMACPP_ARGS_CPU`: `--threads 4 --no-mmap` → `--threads 6 --no-mmap`" in text
    assert "**cannot be read**" in text
    assert report.as_dict()["changes"][0]["where"] == ("cpu",)


def test_a_directory_that_is_not_a_checkout_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"has no devops/\*\.Dockerfile: give --source a checkout of BodhiApp"):
        consumer_checkout.read(tmp_path, DATA)


def test_the_newest_commit_is_fetched_and_removed_afterwards(checkout: Path) -> None:
    commit = clones.commit_all(checkout).head.commit
    with consumer_checkout.newest(f"file://{checkout}") as fetched:
        assert consumer_checkout.read(fetched, DATA).commit == commit.hexsha
        assert consumer_checkout.changes(DATA, consumer_checkout.read(fetched, DATA)) == ()
    assert not fetched.exists()
    with (
        pytest.raises(SourceError, match=r"cannot be fetched \(.*\): give --source a checkout"),
        consumer_checkout.newest(f"file://{checkout}-not"),
    ):
        pass


# --- what people are told ---


def test_the_readme_has_the_table_of_arguments() -> None:
    readme = documents.TEXTS["README.md"]
    assert documents.arguments_table() in readme
    assert f"uid and gid {DATA.volume_owner}" in readme


def test_the_text_has_the_drivers_that_the_recipes_need() -> None:
    text = " ".join(documents.TEXTS["docs/child-images.md"].split())
    for variant in variants.VARIANTS:
        defaults = dockerfile.global_arguments(settings.ROOT / variant.dockerfile, {})
        if variant.device and variant.device.driver.oldest:
            version = defaults[variant.toolkit[variant.device.driver.toolkit]].rpartition(":")[2]
            oldest = machine.of_toolkit(variant.device.driver.oldest, version)
            short = ".".join(version.split(".")[:2])
            assert re.search(rf"'s {re.escape(oldest)} for \w+ {re.escape(short)}\b", text), variant.name
    for name, argument in (("intel", "ONEAPI_VERSION"), ("musa", "MUSA_VERSION")):
        version = dockerfile.global_arguments(settings.ROOT / variants.find(name).dockerfile, {})[argument]
        assert re.search(rf"\b{re.escape(version[:6])}", text), name
