"""The shell scripts that recipes copy, run by the host's shell."""

from __future__ import annotations

import json
import subprocess

import pytest

from base_images import settings, variants
from base_images.recipes import dockerfile
from base_images.recipes import facts as recipe_facts
from tests.support import commands

FILES = settings.ROOT / "dockerfiles"
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "BUILD_VERSION": "2508201420-abc1234",
    "BUILD_COMMIT": "abc1234567890abcdef1234567890abcdef12345",
    "BUILD_BRANCH": "main",
    "TARGETPLATFORM": "linux/amd64",
    "LLAMA_CPP_TAG": "b1",
    "LLAMA_CPP_COMMIT": "c" * 40,
}


def version_json(*arguments: str, **environment: str) -> dict[str, object]:
    done = subprocess.run(
        ["sh", FILES / "version-json", *arguments],
        env={**ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    parsed = json.loads(done.stdout)
    assert isinstance(parsed, dict)
    return parsed


def test_version_json_has_the_specifications_keys_and_ours() -> None:
    found = version_json("variant=cuda", "variants=cuda,cpu", "cuda=12.8.1")
    assert found.pop("glibc")
    assert found == {
        "version": "2508201420-abc1234",
        "commit": "abc1234567890abcdef1234567890abcdef12345",
        "timestamp": "2508201420",
        "variant": "cuda",
        "branch": "main",
        "variants": ["cuda", "cpu"],
        "platform": "linux/amd64",
        "llama_cpp": {"tag": "b1", "commit": "c" * 40},
        "toolkit": {"cuda": "12.8.1"},
    }
    released = version_json("variant=cpu", "variants=cpu", LLAMA_CPP_RELEASE="v0.6.0")
    assert released["llama_cpp"] == {"tag": "b1", "commit": "c" * 40, "release": "v0.6.0"}
    assert version_json("variant=cpu", "variants=cpu", LLAMA_CPP_RELEASE="")["llama_cpp"] == found["llama_cpp"]


@pytest.mark.parametrize("branch", ['say-"hi"', "it's", "a$b`c`", "ü/ß", "50%", "a\\b"])
def test_a_branch_may_have_any_name(branch: str) -> None:
    assert version_json("variant=cpu", "variants=cpu", BUILD_BRANCH=branch)["branch"] == branch


@pytest.mark.parametrize("value", ["gfx908;gfx90a", "quay.io/ascend/cann:8.5.0-910b", "86-real;90", "a=b", ""])
def test_a_toolkit_setting_may_be_any_text(value: str) -> None:
    assert version_json("variant=rocm", "variants=rocm,cpu", f"arch={value}")["toolkit"] == {"arch": value}


@pytest.mark.parametrize("variant", variants.VARIANTS, ids=lambda variant: variant.name)
def test_a_recipe_passes_on_the_toolkit_of_the_table(variant: variants.Variant) -> None:
    """Global ARGs have a default and stages redeclare them without one, which would hide the global value."""
    path = settings.ROOT / variant.dockerfile
    defaults = dockerfile.global_arguments(path, {})
    facts = {
        (fact.stage, fact.kind, fact.name): fact.value for fact in recipe_facts.read(path.read_text(), variant.name)
    }
    for argument in variant.toolkit.values():
        assert defaults[argument]
        assert facts["additions", "arg", argument] == ""
    handed = [name for stage, kind, name in facts if (stage, kind) == ("additions", "run") and "version-json" in name]
    directories = ",".join(variant.directories)
    toolkit = "".join(f' {key}="${{{argument}}}"' for key, argument in variant.toolkit.items())
    assert handed == [f"sh /mnt/version-json variant={variant.name} variants={directories}{toolkit}"]


def test_a_missing_build_argument_fails_the_build() -> None:
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "BUILD_VERSION"}
    done = commands.run(["sh", FILES / "version-json"], env=environment)
    assert done.returncode != 0
    assert "BUILD_VERSION" in done.stderr


def test_recipes_default_to_the_pin() -> None:
    pin = settings.load().pin
    for path in FILES.glob("*.Dockerfile"):
        text = path.read_text()
        assert f"\nARG LLAMA_CPP_TAG={pin.tag}\n" in text, path.name
        assert f"\nARG LLAMA_CPP_COMMIT={pin.commit}\n" in text, path.name
        assert f"\nARG LLAMA_CPP_RELEASE={pin.release}\n" in text, path.name
        configured = [line for line in text.splitlines() if "-DLLAMA_BUILD_NUMBER" in line]
        assert all("${LLAMA_CPP_RELEASE:+-DLLAMA_BUILD_IS_DEV=OFF}" in line for line in configured), path.name
