from __future__ import annotations

from datetime import UTC, datetime

import pytest

from base_images import versions
from base_images.errors import UsageError
from base_images.labels import Label
from base_images.release import reproduce
from base_images.versions import Head
from tests.support import images

COMMIT = "0123456789abcdef0123456789abcdef01234567"
VERSION = versions.parse("2508201420-0123456")
HEAD = Head(commit=COMMIT, time=datetime(2025, 8, 20, 14, 20, tzinfo=UTC), branch="main", changes=(), version=VERSION)
LABELS = {
    Label.VARIANT.value: "cpu",
    Label.REVISION.value: COMMIT,
    Label.VERSION.value: str(VERSION),
    Label.PLATFORM.value: "linux/amd64",
    Label.BUILD_ARGUMENTS.value: '{"LLAMA_CPP_TAG": "b10454"}',
}


def test_a_plan_is_read_from_the_labels() -> None:
    plan = reproduce.plan_of(images.image(labels=LABELS), HEAD)
    assert (plan.variant, plan.platform, plan.dockerfile) == ("cpu", "linux/amd64", "dockerfiles/cpu.Dockerfile")
    assert (plan.arguments, plan.labels, plan.tags) == ({"LLAMA_CPP_TAG": "b10454"}, LABELS, ())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({Label.REVISION: "f" * 40}, "git checkout ffff"),
        ({Label.VERSION: f"{VERSION}-dirty"}, "changes that no commit has"),
        ({Label.VARIANT: "toaster"}, "toaster"),
        ({Label.BUILD_ARGUMENTS: "{"}, "only an image of ours"),
        ({Label.BUILD_ARGUMENTS: "[]"}, "only an image of ours"),
    ],
)
def test_an_image_that_cannot_be_built_again(changes: dict[Label, str], message: str) -> None:
    labels = {**LABELS, **{label.value: text for label, text in changes.items()}}
    with pytest.raises(UsageError, match=message):
        reproduce.plan_of(images.image(labels=labels), HEAD)


def test_an_image_without_labels() -> None:
    with pytest.raises(UsageError, match="only an image of ours"):
        reproduce.plan_of(images.image(), HEAD)
