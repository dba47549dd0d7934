"""Tasks as a user types them, without an engine."""

from __future__ import annotations

import json
import re
import subprocess
from importlib.metadata import packages_distributions
from pathlib import Path

import git
import pytest
import tasks
from invoke.parser import Parser

from base_images import settings, variants
from tests.support.clones import fresh_copy
from tests.support.commands import invoke

NO_ENGINE = {"DOCKER_HOST": "unix:///nowhere/docker.sock"}


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    """Returns the error of a failed command: one line, no traceback."""
    assert "Traceback" not in done.stdout + done.stderr
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


def importing(*arguments: str) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    """Runs invoke without an engine and without git remotes; returns also the third-party packages it imported."""
    nobody = {**NO_ENGINE, "GIT_ALLOW_PROTOCOL": "none"}
    done = invoke(*arguments, environment={**nobody, "PYTHONPROFILEIMPORTTIME": "1"})
    line = re.compile(r"^import time: .*\| *([^|\n]+)\n", re.MULTILINE)  # one line per import
    modules = {name.partition(".")[0] for name in line.findall(done.stderr)}
    assert "invoke" in modules
    done.stderr = line.sub("", done.stderr)
    return done, modules & packages_distributions().keys()


@pytest.mark.parametrize(
    ("arguments", "needed"),
    [
        (("--list",), set()),
        (("--complete", "--", "invoke", "smo"), set()),
        (("show-git-info",), {"git", "gitdb", "smmap", "rich", "google"}),
    ],
)
def test_quick_tasks_import_nothing_slow_and_need_no_network(arguments: tuple[str, ...], needed: set[str]) -> None:
    _, already = importing("--version")  # invoke itself
    done, imported = importing(*arguments)
    assert done.returncode == 0, done.stderr
    assert imported - already == needed


def test_the_list_has_every_task_once_on_one_line_of_100_columns_in_its_group() -> None:
    listed = invoke("--list").stdout
    assert re.findall(r"^(\w.*):$", listed, re.MULTILINE) == list(tasks.GROUPS)
    assert sorted(re.findall(r"^  ([\w-]+)  +\S", listed, re.MULTILINE)) == sorted(tasks.namespace.tasks)
    assert max(map(len, listed.splitlines())) <= 100
    assert invoke("-l").stdout == listed
    names = "check-version (check-base-images-version)"
    for task in tasks.namespace.tasks.values():  # invoke's own list, of `--list --list-format flat`
        assert len(f"  {names}   {str(task.__doc__).splitlines()[0]}") < 100


@pytest.mark.parametrize(
    "task", ["build-local", "smoke", "calibrate", "release-base-images", "promote", "check-upstream"]
)
def test_the_help_of_a_main_task_has_an_example_that_parses(task: str) -> None:
    [example] = re.findall(r"^ *Example: invoke (.+)$", invoke("--help", task).stdout, re.MULTILINE)
    assert example.split()[0] == task
    Parser(contexts=tasks.namespace.to_contexts()).parse_argv(example.split())


def test_check_version_prints_the_same_facts_as_its_json() -> None:
    facts = json.loads(invoke("check-version", "--json").stdout)
    text = invoke("check-version").stdout
    head = git.Repo(settings.ROOT).head.commit.hexsha
    assert facts["commit"] == head
    assert facts["version"].split("-")[1] == head[:7]
    pin = settings.load().pin
    assert facts["llama_cpp"] == {"tag": pin.tag, "release": pin.release or None, "commit": pin.commit}
    assert facts["version"] in text


def test_show_git_info() -> None:
    facts = json.loads(invoke("show-git-info", "--json").stdout)
    assert facts["git_tag"] == f"base-images/v{facts['version']}"
    assert f"{settings.load().registry}:cpu-{facts['version']}" in facts["image_tags"]
    assert facts["git_tag"] in invoke("show-git-info").stdout


def test_an_environment_variable_overrides_the_registry() -> None:
    done = invoke("show-git-info", "--json", environment={settings.REGISTRY_VARIABLE: "registry.example.org/x"})
    assert all(tag.startswith("registry.example.org/x:") for tag in json.loads(done.stdout)["image_tags"])


@pytest.mark.parametrize(
    "arguments",
    [
        ("build-local",),
        ("check-image", "x"),
        ("test-local-images",),
        ("smoke", "--variant", "cpu"),
        ("clean-local-images",),
        ("plan", "--format", "command"),
    ],
)
def test_without_an_engine_the_error_says_what_to_do(arguments: tuple[str, ...]) -> None:
    done = invoke(*arguments, environment=NO_ENGINE)
    assert done.returncode == 3
    assert "answers at unix:///nowhere/docker.sock (there is no such socket): start it, or choose" in sentence(done)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("build-local --variant cuba", "cuba.*cuda"),
        ("build-local --variant Vulcan", "Vulcan.*vulkan"),
        ("build-local --variant roc", "roc.*rocm"),
        ("build-local --variant xyz", "xyz.*choose one of cpu, cuda"),
        ("build-local --variant cuda --platform arm64", "cuda is not built for linux/arm64"),
        ("build-local --platform riscv64", "choose amd64 or arm64"),
        ("build-local --origin nowhere", "auto, registries, packages"),
        ("build-local --jobs x", "--jobs x is not a number of builds"),
        ("build-local --jobs 0", "--jobs 0 is not a number of builds"),
        ("build-local --jobs=-1", "--jobs -1 is not a number of builds"),
        ("smoke --variant cpu --image x --url http://x", "--image, --url and --binary exclude each other"),
        ("smoke --variant cpu --keep --binary x", "--keep leaves containers"),
        ("smoke --variant cpu --url http://x --software-device", "leave it out with --url"),
        ("smoke --variant cpu --url x", r"'x' is not a URL of a server: write it as http://127\.0\.0\.1:8080\."),
        ("smoke --variant cpu --binary /nowhere/llama-server", "/nowhere/llama-server is not a program"),
        ("plan --format yaml", "choose table, json, command, bake, matrix or latest"),
        ("plan --platform riscv64", "choose amd64 or arm64"),
        ("plan --format matrix --variant cuda --platform arm64", "cuda is not built for linux/arm64"),
        ("plan --format bake --origin packages", "only on bases from registries"),
        ("known-answer-model --type Q5_0 --output /nowhere/x", "choose one of F32, F16, Q8_0, Q4_0, Q4_K, Q5_K, Q6_K"),
        ("known-answer-model --output /dev/null/x", "choose another file"),
        ("smoke --variant cpu --url http://x --model x", "--model is for a server that is started here"),
        ("smoke --variant cuda --operations --on nothing", "leave it out with --url or --on nothing"),
        ("smoke --variant cpu --operations ROPE --url http://x", "leave it out with --url or --on nothing"),
        (
            "smoke --variant cpu --operations --binary /nowhere/x",
            "There is no /nowhere/test-backend-ops: copy it there",
        ),
        ("smoke --variant cpu --model-name x", "name it with --url"),
        ("smoke --variant cpu --url http://x --api-key-file /nowhere/key", "API key cannot be read from /nowhere/key"),
        ("smoke --variant cpu --model /nowhere/x-00001-of-00002.gguf", "/nowhere/x-00001-of-00002.gguf cannot be used"),
    ],
)
def test_a_usage_error_says_what_to_write(command: str, said: str) -> None:
    done = invoke(*command.split(), environment=NO_ENGINE)
    assert done.returncode == 2
    assert re.search(said, sentence(done))


def test_a_missing_device_is_reported_before_the_slow_imports() -> None:
    for variant in variants.VARIANTS:
        if variant.device is None or any(Path(node).exists() for node in ("/dev/dri", "/dev/nvidiactl", "/dev/dxg")):
            continue
        if variant.device.runtime:  # only an engine knows it
            continue
        done, imported = importing("smoke", "--variant", variant.name, "--image", "not-looked-for")
        assert done.returncode == 9
        assert f"until `{variant.device.check}` shows it on the host." in sentence(done)
        assert not imported & {"gguf", "git", "jinja2", "numpy", "openai"}


def test_a_program_is_started_whatever_nodes_the_host_has() -> None:
    done = invoke("smoke", "--variant", "vulkan", "--binary", "/nowhere/llama-server", environment=NO_ENGINE)
    assert done.returncode == 2  # and not 9, for want of /dev/dri
    assert "/nowhere/llama-server is not a program" in sentence(done)


def test_the_known_answer_model_is_written_to_the_output(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    done = invoke(
        "known-answer-model", "--output", "model.gguf", environment={"BASE_IMAGES_CALLER_DIRECTORY": str(tmp_path)}
    )
    assert done.returncode == 0
    assert path.read_bytes()[:4] == b"GGUF"


def test_a_directory_without_a_repository_is_an_error(tmp_path: Path) -> None:
    done = invoke("check-version", cwd=fresh_copy(tmp_path))
    assert done.returncode == 7
    assert "is not a git repository" in sentence(done)


def test_an_unwritable_path_is_one_sentence(tmp_path: Path) -> None:
    # Not even root may make a directory there.
    done = invoke(
        "fetch-source", "--origin", "packages", cwd=fresh_copy(tmp_path), environment={"XDG_CACHE_HOME": "/sys"}
    )
    assert done.returncode == 1
    assert "/sys/llama-cpp-base-images: " in sentence(done)
    assert "fix that and run the same command again" in sentence(done)


def test_the_matrix_needs_no_engine_and_is_one_line() -> None:
    done = invoke("plan", "--format", "matrix", environment={**NO_ENGINE, "RUNNERS": '{"RUNNER_CUDA": "gpu"}'})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    jobs = json.loads(done.stdout)
    assert jobs["variants"] == [variant.name for variant in variants.VARIANTS]
    assert jobs["checks"]["cuda"][0]["runner"] == "gpu"
    done = invoke("plan", "--format", "matrix", environment={**NO_ENGINE, "RUNNERS": "cuda=gpu"})
    assert done.returncode == 2
    assert "RUNNERS is not JSON" in sentence(done)


def test_calibration_says_what_is_wrong_in_one_sentence(tmp_path: Path) -> None:
    server = tmp_path / "llama-server"
    server.write_text("#!/bin/sh\n")
    for arguments, said in (
        (("--variant", "cpu", "--image", "a", "--binary", str(server)), "--image and --binary exclude each other"),
        (("--variant", "rocm", "--on", "software"), "No software emulates the ROCm device of rocm"),
        (("--variant", "cpu", "--on", "moon"), "A smoke test is not on 'moon'"),
        (("--variant", "cpu", "--binary", str(server)), f"{server} is not a program: name the llama-server to start."),
        (("--variant", "cpu"), "nowhere/docker.sock"),
    ):
        done = invoke("calibrate", *arguments, environment=NO_ENGINE)
        assert done.returncode != 0
        assert said in sentence(done)
