"""dockerfiles/llama-user on base images that have given its uid or gid to others."""

from __future__ import annotations

import pytest

from base_images import settings
from base_images.adapters.container import ContainerSpec
from base_images.adapters.engine import Engine, Image
from tests.support import bodhi


def made_on(engine: Engine, base: Image, *commands: str) -> list[str]:
    """Returns the output and exit code of llama-user on a base changed by these commands, and the uid and gid."""
    before = "".join(f"RUN {command}\n" for command in ("userdel llama", "rm -r /home/llama", *commands))
    log = "{ sh /llama-user 2>&1; echo $?; id -u llama; id -g llama; } > /log 2>/dev/null"
    text = f"FROM {base.tags[0]}\nUSER root\n{before}COPY llama-user /\nRUN {log} || :\n"
    files = {"llama-user": (settings.ROOT / "dockerfiles/llama-user").read_bytes()}
    with bodhi.built(engine, text, files) as image:
        return engine.probe(ContainerSpec(image=image.id, entrypoint=("cat", "/log"))).stdout.splitlines()


@pytest.mark.parametrize(
    ("commands", "said"),
    [
        ((), ["0", "999", "999"]),
        (("groupadd --gid 999 docker",), ["0", "999", "998"]),
        (
            ("useradd --uid 999 polkitd",),
            [
                (
                    "llama-user: the base image has given uid 999 to polkitd, and existing volumes belong to llama by "
                    "that number: choose a base image that leaves it free."
                ),
                "1",
            ],
        ),
    ],
    ids=["free", "gid taken", "uid taken"],
)
def test_the_user_has_its_uid_or_the_build_says_why_not(
    engine: Engine, cpu_image: Image, commands: tuple[str, ...], said: list[str]
) -> None:
    assert made_on(engine, cpu_image, *commands) == said
