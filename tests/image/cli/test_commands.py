"""Tasks that need an engine, as a user types them."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest

from base_images import versions
from base_images.adapters import engine as engines
from base_images.adapters.engine import Engine, Image
from base_images.errors import EngineError
from base_images.labels import Label
from tests.support.commands import invoke


def assert_sentence(done: subprocess.CompletedProcess[str], exit_code: int, *parts: str) -> None:
    assert done.returncode == exit_code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    for part in parts:
        assert part in done.stderr


def test_check_image_reports_every_row_in_json_also_where_its_record_cannot_be_written(
    cpu_image: Image, tmp_path: Path
) -> None:
    done = invoke("check-image", cpu_image.id, "--json")
    assert done.returncode == 0, done.stdout
    (tmp_path / "file").touch()
    done = invoke("check-image", cpu_image.id, "--json", "--record", str(tmp_path / "file"))
    assert_sentence(done, 2, f"{tmp_path}/file/contract-cpu.json cannot be written (")
    report = json.loads(done.stdout)
    assert report["ok"]
    assert [row["number"] for row in report["rows"]] == list(range(1, 22))


def test_check_image_of_a_foreign_image_reports_findings(engine: Engine, cpu_image: Image) -> None:
    base = cpu_image.labels[Label.BASE_NAME]
    if not engine.has_image(base):
        pytest.skip(f"the base {base} is not on this engine")
    done = invoke("check-image", base)
    assert done.returncode == 1
    assert "There is no llama-server in the image." in done.stdout
    assert done.stderr == ""


def test_a_missing_image_is_one_sentence() -> None:
    for command in (["check-image", "no-such-image:at-all"], ["test-local-images", "--image", "no-such-image:at-all"]):
        assert_sentence(invoke(*command), 4, "There is no image 'no-such-image:at-all' on this engine")


def test_a_source_that_is_not_llama_cpp_is_refused(tmp_path: Path) -> None:
    assert_sentence(invoke("build-local", "--source", str(tmp_path)), 5, str(tmp_path), "is not llama.cpp")
    assert_sentence(
        invoke("build-local", environment={"LLAMA_CPP_DIR": str(tmp_path)}), 5, str(tmp_path), "is not llama.cpp"
    )


@pytest.mark.usefixtures("cpu_image")
def test_a_plan_is_the_same_in_three_formats(engine: Engine) -> None:
    origin = engine.image(versions.local_reference("cpu")).labels[Label.BUILD_ORIGIN]
    plan = json.loads(invoke("plan", "--variant", "cpu", "--origin", origin, "--format", "json").stdout)[0]
    words = shlex.split(invoke("plan", "--variant", "cpu", "--origin", origin, "--format", "command").stdout)
    table = invoke("plan", "--variant", "cpu", "--origin", origin).stdout
    assert f"{Label.VERSION.value}={plan['version']}" in words
    assert plan["tags"][0] in table
    assert_sentence(invoke("plan", "--format", "xml"), 2, "choose table, json, command, bake, matrix or latest")


def test_the_engine_is_that_of_dockers_current_context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    socket = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"currentContext": "elsewhere"}))

    def point_at(address: str) -> None:
        directory = tmp_path / "contexts" / "meta" / hashlib.sha256(b"elsewhere").hexdigest()
        directory.mkdir(parents=True, exist_ok=True)
        endpoint = {"docker": {"Host": address, "SkipTLSVerify": False}}
        meta = {"Name": "elsewhere", "Metadata": {}, "Endpoints": endpoint}
        (directory / "meta.json").write_text(json.dumps(meta))

    point_at(socket)
    connected = engines.connect()
    assert connected.info().version
    connected.close()
    point_at("tcp://127.0.0.1:1")
    with pytest.raises(EngineError, match=r"at docker's context elsewhere \(tcp://127.0.0.1:1\) \(connection refused"):
        engines.connect()


@pytest.mark.parametrize("context", ["typo", ""])
def test_another_engine_than_the_chosen_one_is_never_used(tmp_path: Path, context: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"currentContext": "gone"}))
    environment = {"DOCKER_CONFIG": str(tmp_path), "DOCKER_HOST": "", "DOCKER_CONTEXT": context}
    for command in (["clean-local-images", "--dry-run"], ["check-image", "llama-cpp-cpu:local"]):
        done = invoke(*command, environment=environment)
        assert_sentence(done, 3, f"names the context {context or 'gone'!r}, which does not exist")
        assert done.stdout == ""


def test_a_missing_credential_helper_is_the_cause_that_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"credsStore": "nonexistent"}))
    socket = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    environment = {"DOCKER_CONFIG": str(tmp_path), "DOCKER_HOST": socket}
    done = invoke("smoke", "--variant", "cpu", "--image", "127.0.0.1:1/x:1", "--on", "nothing", environment=environment)
    assert_sentence(done, 3, "error: docker's credential helper docker-credential-nonexistent is not installed, so ")
