from __future__ import annotations

import functools
import json
import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import git
import pytest
from jsonschema import Draft202012Validator

from base_images import settings, variants, versions
from base_images.adapters.repository import Commits
from base_images.errors import RepositoryError, UsageError
from base_images.labels import Label
from base_images.release import evidence, signatures
from base_images.release import notes as release_notes
from base_images.release import record as release_record
from base_images.release.evidence import Attached, Kind
from base_images.release.promote import Candidate, Move
from base_images.release.record import Found, LlamaCpp, PlatformRecord, Record, Released, ReportRecord, Seen, Status
from base_images.versions import Foreign, Version
from tests.support import releases
from tests.support.releases import VULKAN, Release

SCHEMA = json.loads(release_record.SCHEMA.read_text(encoding="utf-8"))
COMMIT = "abc1234567890abcdef1234567890abcdef12345"
VERSION = versions.parse("2508201420-abc1234")
OLDER = versions.parse("2508010000-0000001")
OLDEST = versions.parse("2507010000-0000000")
NEWER = versions.parse("2509010000-0000002")
NOW = datetime(2025, 8, 21, 9, 0, 5, tzinfo=UTC)
SETTINGS = replace(settings.load(), registry="ghcr.io/x_y/z", url="https://github.com/X/z.z")
RELEASED = Released(
    version=VERSION,
    commit=COMMIT,
    llama_cpp=LlamaCpp(repository="https://github.com/ggml-org/llama.cpp", tag="b11312", commit="0" * 40),
    previous=OLDER,
    changes=Commits(count=3, subjects=("Close <b>#12</b> with @someone's `code`", "Second | one")),
)
INDEX = "sha256:" + "1" * 64
OTHER = "sha256:" + "2" * 64


def labels(variant: str, platform: str, **changes: str) -> dict[str, str]:
    return {
        **releases.labels(variants.find(variant), Release(version=VERSION, commit=COMMIT)),
        Label.PLATFORM: platform,
        Label.BASE_NAME: "docker.io/library/ubuntu:24.04",
        Label.BASE_DIGEST: "sha256:" + "b" * 64,
        Label.GLIBC: "2.39",
        "bodhi.toolkit.cuda": "12.8.1",
        **changes,
    }


def found(
    variant: str = "cuda", platform: str = "linux/amd64", *, kinds: tuple[Kind, ...] = (Kind.CONTRACT, Kind.SMOKE)
) -> Found:
    subject = f"ghcr.io/x_y/z@{INDEX}"
    reports = {
        kind: Attached(
            digest="sha256:" + "e" * 64,
            evidence=releases.report(subject, platform, kind, variant=variant, version=VERSION),
        )
        for kind in kinds
    }
    digest = "sha256:" + platform[-2:].encode().hex() * 16
    return Found(
        candidate=Candidate(platform=platform, digest=digest, labels=labels(variant, platform), reports=reports),
        size=123_456_789,
        previous_size=120_000_000,
        arguments={"BUILD_COMMIT": "abc"},
    )


def seen(**changes: Any) -> Seen:
    known = {"variant": variants.find("cuda"), "digest": INDEX, "images": (found(),), "tags": (f"cuda-{VERSION}",)}
    return Seen(**{**known, **changes})


def move(number: int, version: Version | Foreign) -> Move:
    return Move(variant="cuda", number=number, version=version, rollback=False)


def back(number: int, version: Version | Foreign) -> Move:
    return Move(variant="cuda", number=number, version=version, rollback=True)


def moved(*moves: Move, latest: str = OTHER) -> Seen:
    return seen(latest=latest, moves=moves)


def record(*of: Seen, release: Released = RELEASED) -> Record:
    return release_record.record(release, of, SETTINGS, now=NOW)


def both(*, kinds: tuple[Kind, ...] = (Kind.CONTRACT, Kind.SMOKE)) -> tuple[Found, ...]:
    return found("vulkan", kinds=kinds), found("vulkan", "linux/arm64", kinds=kinds)


THERE = Foreign(name="999912312359-e118046")
AGAIN = f"run `invoke promote --version {VERSION} --variant cuda`."
BACK = f"it was latest, and was rolled back: {OLDER} was made latest since."
NOT_YET = f"it has not been promoted yet: {AGAIN}"
STATUSES: dict[str, tuple[Seen, Status, str]] = {
    "latest": (moved(move(1, VERSION), latest=INDEX), Status.LATEST, ""),
    "latest before there were records": (seen(latest=INDEX), Status.LATEST, ""),
    "promoted": (moved(move(1, VERSION), move(2, NEWER)), Status.PROMOTED, ""),
    "rolled back": (moved(move(1, OLDER), move(2, VERSION), back(3, OLDER)), Status.ROLLED_BACK, BACK),
    "rolled back with the one after it": (
        moved(move(1, OLDER), move(2, VERSION), move(3, NEWER), back(4, OLDER)),
        Status.ROLLED_BACK,
        BACK,
    ),
    "promoted and rolled back at once": (
        moved(move(1, OLDER), move(2, VERSION), back(2, OLDER)),
        Status.ROLLED_BACK,
        BACK,
    ),
    "promoted, and the one after the next rolled back": (
        moved(move(1, VERSION), move(2, NEWER), back(3, NEWER)),
        Status.PROMOTED,
        "",
    ),
    "back by a rollback": (moved(move(1, VERSION), move(2, NEWER), back(3, VERSION), latest=INDEX), Status.LATEST, ""),
    "published": (moved(move(1, OLDER)), Status.PUBLISHED, NOT_YET),
    "rolled back to what was there before": (
        moved(move(0, THERE), move(1, VERSION), back(2, THERE)),
        Status.ROLLED_BACK,
        f"it was latest, and was rolled back: {THERE} was made latest since.",
    ),
    "published, and another is latest that was there before": (moved(move(0, THERE)), Status.PUBLISHED, NOT_YET),
    "the first one": (seen(), Status.PUBLISHED, NOT_YET),
    "overtaken": (moved(move(1, NEWER)), Status.PUBLISHED, f"{NEWER} is latest and newer."),
    "promotion cut off": (
        moved(move(1, OLDER), move(2, VERSION)),
        Status.PUBLISHED,
        f"its promotion was cut off: {AGAIN}",
    ),
    "no smoke test": (
        seen(images=(found(kinds=(Kind.CONTRACT,)),)),
        Status.PUBLISHED,
        "linux/amd64: no smoke report is attached: run `invoke smoke` with --record, and attach that.",
    ),
    "no device for vulkan": (
        seen(variant=VULKAN, images=both()),
        Status.PUBLISHED,
        "linux/amd64: it was smoke-tested without a device, which vulkan may not be promoted on.",
    ),
    "a platform is missing": (
        seen(variant=VULKAN, digest=None, images=both(kinds=(Kind.CONTRACT, Kind.SMOKE_ON_SOFTWARE_DEVICE))[:1]),
        Status.INCOMPLETE,
        "linux/arm64 is missing: publish it first.",
    ),
    "a platform is missing in the index": (
        seen(variant=VULKAN, images=both(kinds=(Kind.CONTRACT, Kind.SMOKE_ON_SOFTWARE_DEVICE))[:1]),
        Status.INCOMPLETE,
        "linux/arm64 is missing: publish it first.",
    ),
    "not merged": (
        seen(digest=None),
        Status.INCOMPLETE,
        "its platforms were not made one image: run `invoke publish --variant cuda`.",
    ),
    "latest on what the policy takes no more": (
        seen(variant=VULKAN, latest=INDEX, images=both()),
        Status.LATEST,
        "linux/amd64: it was smoke-tested without a device, which vulkan may not be promoted on.",
    ),
    "missing": (
        seen(digest=None, images=(), tags=()),
        Status.MISSING,
        f"ghcr.io/x_y/z has no cuda-{VERSION}: publish it first.",
    ),
    "unreadable": (
        Seen(variant=variants.find("cuda"), problem="x_y | has lost *the* blob."),
        Status.UNREADABLE,
        "x_y | has lost *the* blob.",
    ),
}


@pytest.mark.parametrize(("state", "status", "reason"), STATUSES.values(), ids=STATUSES)
def test_each_state_has_its_status_and_reason(state: Seen, status: Status, reason: str) -> None:
    told = record(state)
    (variant,) = told.variants
    assert variant.status is status
    assert variant.reasons[:1] == ((reason,) if reason else ())
    assert (f"latest-{variant.name}" in variant.tags) == (status is Status.LATEST)
    assert not problems(told.as_dict())
    notes = release_notes.as_markdown(told, SETTINGS)
    assert f"| {variant.title} | {status} | `ghcr.io/x_y/z:{variant.name}-{VERSION}` |" in notes
    assert ("## What did not get through" in notes) == bool(reason)


def test_the_cases_cover_every_status() -> None:
    assert {status for _, status, _ in STATUSES.values()} == set(Status)
    assert all(f"*{status}*:" in release_notes.as_markdown(record(seen()), SETTINGS) for status in Status)


def test_missing_platforms_are_named() -> None:
    state, _, _ = STATUSES["a platform is missing"]
    (variant,) = record(state).variants
    assert variant.missing_platforms == ("linux/arm64",)
    assert [image.platform for image in variant.platforms] == ["linux/amd64"]


def test_the_record_has_the_facts_of_an_images_labels() -> None:
    (variant,) = record(seen(latest=INDEX)).variants
    (image,) = variant.platforms
    assert (image.size, image.base_name, image.glibc) == (123_456_789, "docker.io/library/ubuntu:24.04", "2.39")
    assert image.toolkit == {"cuda": "12.8.1"}
    assert image.arguments == {"BUILD_COMMIT": "abc"}
    assert [report.file for report in image.reports] == [
        "contract-cuda-amd64.evidence.json",
        "smoke-cuda-amd64.evidence.json",
    ]
    assert (image.contract, image.smoke) == (True, True)
    assert variant.tags == (f"cuda-{VERSION}", "latest-cuda")


def test_the_record_has_the_digests_of_all_bases() -> None:
    one, two = f"sha256:{'1' * 64}", f"sha256:{'2' * 64}"

    def of(runtime: str) -> Found:
        arguments = {"WEB_BASE_IMAGE": f"docker.io/node:24@{one}", "RUNTIME_BASE_IMAGE": runtime, "OTHER": f"x@{one}"}
        return replace(found(), arguments=arguments)

    told = record(
        seen(images=(of(f"docker.io/ubuntu:24.04@{two}"), of(f"docker.io/ubuntu:24.04@{one}"), of("made-here")))
    )
    assert told.bases == {"docker.io/node:24": (one,), "docker.io/ubuntu:24.04": (one, two)}
    assert not problems(json.loads(json.dumps(told.as_dict())))


def test_a_second_build_is_no_smoke_test() -> None:
    def of(*kinds: Kind) -> PlatformRecord:
        reports = [
            ReportRecord(kind=kind, ok=kind is not Kind.REPRODUCIBLE, made="", digest="", file="") for kind in kinds
        ]
        return replace(record(seen()).variants[0].platforms[0], reports=tuple(reports))

    assert (of(Kind.SMOKE, Kind.REPRODUCIBLE).smoke, of(Kind.SMOKE, Kind.REPRODUCIBLE).reproducible) == (True, False)
    assert (of(Kind.CONTRACT).smoke, of(Kind.CONTRACT).reproducible) == (None, None)


def test_an_image_without_labels_has_no_facts() -> None:
    bare = replace(found(), candidate=replace(found().candidate, labels={}), arguments={})
    (variant,) = record(seen(images=(bare,))).variants
    (platform,) = variant.platforms
    assert (platform.base_name, platform.glibc, platform.arguments) == (None, None, {})
    assert not problems(record(seen(images=(bare,))).as_dict())
    assert "| unknown | unknown |" in release_notes.as_markdown(record(seen(images=(bare,))), SETTINGS)


@pytest.mark.parametrize(
    ("kind", "latest", "waived"),
    [(Kind.SMOKE, INDEX, True), (Kind.SMOKE_ON_DEVICE, INDEX, False), (Kind.SMOKE, OTHER, False)],
)
def test_a_used_device_waiver_is_in_the_record(kind: Kind, latest: str, *, waived: bool) -> None:
    told = record(seen(latest=latest, images=(found(kinds=(Kind.CONTRACT, kind)),)))
    assert told.variants[0].device_waiver == (variants.find("cuda").device_waiver if waived else None)
    row = next(line for line in notes_of(told) if line.startswith("| CUDA | yes |"))
    assert row.endswith(f"| {'yes' if waived else 'no'} |")


def test_the_notes_have_the_device_policy_in_any_case() -> None:
    lines = notes_of(record(STATUSES["missing"][0]))
    for variant in variants.VARIANTS:
        rows = [
            line
            for line in lines
            if line.startswith(f"| {variant.title} | {'yes' if variant.device_waiver else 'no'} |")
        ]
        assert len(rows) == (1 if variant.device else 0)
        assert all(variant.device_waiver in row for row in rows)


def notes_of(told: Record) -> list[str]:
    return release_notes.as_markdown(told, SETTINGS).splitlines()


def test_the_notes_show_how_to_pin_and_verify() -> None:
    notes = release_notes.as_markdown(record(STATUSES["published"][0], seen(latest=OTHER, digest=OTHER)), SETTINGS)
    assert f"FROM ghcr.io/x_y/z@{OTHER}\n" in notes, "of what is latest"
    patterns = re.findall(r" --cert(?:ificate-identity-regexp|-identity-regex) '(.*)' \\\n", notes)
    assert len(patterns) == 2
    workflow = "https://github.com/X/z.z/.github/workflows/variant.yml"
    for pattern in patterns:
        assert re.search(pattern, f"{workflow}@refs/tags/base-images/v{VERSION}")
        assert re.search(pattern, f"{workflow}@{COMMIT}")
        assert not re.search(pattern, f"{workflow}@refs/heads/main")
        assert not re.search(pattern, f"{workflow}@refs/tags/base-images/v{VERSION}-x")
        assert not re.search(pattern, f"https://example.org/{workflow}@{COMMIT}")
        assert not re.search(pattern, f"{workflow.replace('z.z', 'zzz')}@{COMMIT}")
    assert "--repo X/z.z \\\n" in notes
    assert f"oci://ghcr.io/x_y/z@{OTHER}\n" in notes
    assert "[llama.cpp b11312](https://github.com/ggml-org/llama.cpp/tree/b11312)" in notes
    assert (settings.ROOT / signatures.WORKFLOW).is_file()

    nothing = release_notes.as_markdown(record(STATUSES["missing"][0]), SETTINGS)
    assert "No image of this version is published." in nothing
    assert "cosign" not in nothing


def test_the_notes_list_the_changes() -> None:
    notes = release_notes.as_markdown(record(seen()), SETTINGS)
    assert f"/compare/base-images/v{OLDER}...base-images/v{VERSION}):\n" in notes
    assert "\n    Close <b>#12</b> with @someone's `code`\n    Second | one\n    … and 1 older ones\n" in notes
    unknown = record(seen(), release=replace(RELEASED, changes=None))
    assert f"Since `{OLDER}`: the clone" in release_notes.as_markdown(unknown, SETTINGS)
    first = record(seen(), release=replace(RELEASED, changes=None, previous=None))
    assert release_notes.as_markdown(first, SETTINGS).endswith("This is the first release.\n")
    assert not problems(first.as_dict())


HOSTILE = "a | b\n# *c* [d](http://e) <img src=x> `f` __g__ $h$ \\"


def test_text_from_outside_is_escaped_in_the_notes() -> None:
    """No text ends a cell of a table early."""
    image = found()
    changed = replace(image.candidate, labels={**labels("cuda", "linux/amd64"), Label.BASE_NAME: HOSTILE})
    state = seen(images=(replace(image, candidate=changed),))
    for told in (record(state), record(Seen(variant=variants.find("cuda"), problem=HOSTILE))):
        lines = notes_of(told)
        for number, line in enumerate(lines):
            if re.fullmatch(r"[| -]+", line):
                columns = line.count("|")
                rows = [row for row in lines[number + 1 :] if row.startswith("|")][:1]
                assert all(len(re.findall(r"(?<!\\)\|", row)) == columns for row in rows), rows
        assert "<img" not in re.sub(r"\\<", "", "\n".join(lines))
    assert release_notes.text(HOSTILE) == (r"a \| b \# \*c\* \[d\](http://e) \<img src=x\> `f` \_\_g\_\_ \$h\$ \\")
    assert release_notes.text("`<b>|` ` <b>") == r"`<b>\|` \` \<b\>"
    assert release_notes.code("a `` b | c\nd") == r"``` a `` b \| c d ```"
    assert release_notes.code("plain") == "`plain`"


# The schema.


def problems(document: object) -> list[str]:
    checked = json.loads(json.dumps(document))
    return [error.message for error in Draft202012Validator(SCHEMA).iter_errors(checked)]


def test_the_release_of_llama_cpp_is_in_the_record() -> None:
    release = replace(RELEASED, llama_cpp=replace(RELEASED.llama_cpp, release="v0.6.0"))
    told = record(seen(), release=release)
    assert told.as_dict()["llama_cpp"]["release"] == "v0.6.0"
    assert not problems(told.as_dict())
    assert "[llama.cpp b11312/v0.6.0](" in release_notes.as_markdown(told, SETTINGS)


def test_the_schema_is_valid_and_describes_every_property() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$id"] == f"{settings.load().url}/raw/main/{release_record.SCHEMA.relative_to(settings.ROOT)}"
    assert record(seen()).as_dict()["$schema"] == SCHEMA["$id"]

    def objects(node: object) -> list[dict[str, Any]]:
        if isinstance(node, list):
            return [found for each in node for found in objects(each)]
        if not isinstance(node, dict):
            return []
        here = [node] if "additionalProperties" in node else []
        return here + [found for each in node.values() for found in objects(each)]

    described = objects(SCHEMA)
    assert len(described) == 9
    for one in described:
        assert one["description"]
        assert all(each.get("description") or each.get("$ref") for each in one.get("properties", {}).values())
        assert (one["additionalProperties"] is False) == ("properties" in one)
        assert one.get("required", []) == list(one.get("properties", {})), "what may be missing is null instead"


def _set(*path: str | int, to: object) -> Callable[[Any], object]:
    *above, last = path
    return lambda document: operator.setitem(functools.reduce(operator.getitem, above, document), last, to)


IMAGE = ("variants", 0, "platforms", 0)


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document.pop("commit"),
        _set("surprise", to=1),
        _set("version", to="v1"),
        _set("made", to="20.8.2025"),
        _set("commit", to="abc1234"),
        _set("variants", to=[]),
        _set("variants", 0, "status", to="fine"),
        _set("variants", 0, "digest", to=None),
        _set("variants", 0, "platforms", to=[]),
        _set("variants", 0, "status", to="missing"),
        _set("variants", 0, "status", to="published"),
        _set("variants", 0, "reasons", to="none"),
        _set(*IMAGE, "size", to="12 MB"),
        _set(*IMAGE, "digest", to="sha1:1"),
        _set(*IMAGE, "arguments", to={"A": 1}),
        _set(*IMAGE, "smoke_tested_on", to="nothing"),
        _set(*IMAGE, "reports", 0, "kind", to="hearsay"),
        _set(*IMAGE, "reports", 0, "ok", to="yes"),
        _set(*IMAGE, "reports", 0, "file", to="../contract.evidence.json"),
    ],
)
def test_the_schema_refuses_invalid_records(change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(json.dumps(record(seen(latest=INDEX)).as_dict()))
    assert not problems(document)
    change(document)
    assert problems(document)


# git.


@pytest.fixture
def clone(tmp_path: Path) -> Iterator[git.Repo]:
    with git.Repo.init(tmp_path / "clone") as made:
        yield made


def commit(clone: git.Repo, subject: str, tag: str) -> str:
    project = Path(clone.working_dir, "pyproject.toml")
    project.write_text(
        "[tool.base-images.llama-cpp]\nrepository = 'https://example.org/l'\n"
        f"tag = '{tag}'\ncommit = '{tag[1:]:0>40}'\n",
        encoding="utf-8",
    )
    clone.git.add("--all")
    clone.git.commit("--allow-empty", "--message", subject)
    return clone.head.commit.hexsha


def test_the_pin_is_read_at_the_released_commit(clone: git.Repo) -> None:
    oldest = commit(clone, "one", "b1")
    clone.git.tag(OLDEST.git_tag)
    released = commit(clone, "two", "b2")
    clone.git.tag("--annotate", "--message", "m", VERSION.git_tag)
    commit(clone, "three", "b3")
    clone.git.tag(NEWER.git_tag)
    clone.git.tag(f"base-images/v{OLDER}-dirty")
    clone.git.tag("base-images/vague")
    clone.git.tag("base-images/v202512281717-e118046")

    told = release_record.released(clone.git, VERSION)
    assert told.commit == released
    assert told.llama_cpp == LlamaCpp(repository="https://example.org/l", tag="b2", commit=f"{2:0>40}")  # no `release`
    assert told.previous == OLDEST
    assert told.changes == Commits(count=1, subjects=("two",))

    first = release_record.released(clone.git, OLDEST)
    assert (first.commit, first.previous, first.changes) == (oldest, None, None)


def test_a_version_that_is_not_a_release_is_an_error(clone: git.Repo) -> None:
    commit(clone, "one", "b1")
    with pytest.raises(UsageError, match=f"which has no tag {VERSION.git_tag}: `git fetch --tags`"):
        release_record.released(clone.git, VERSION)
    Path(clone.working_dir, "pyproject.toml").write_text("[tool]\n")
    clone.git.commit("--all", "--message", "two")
    clone.git.tag(VERSION.git_tag)
    with pytest.raises(RepositoryError, match=r"has no llama\.cpp pin"):
        release_record.released(clone.git, VERSION)
    clone.git.rm("pyproject.toml")
    clone.git.commit("--message", "three")
    clone.git.tag(OLDER.git_tag)
    with pytest.raises(RepositoryError, match=r"has no llama\.cpp pin"):
        release_record.released(clone.git, OLDER)


# Files.


def test_a_release_writes_its_record_and_reports(tmp_path: Path) -> None:
    state = seen(latest=INDEX)
    told = record(state)
    wanted = ["contract-cuda-amd64.evidence.json", "release.json", "smoke-cuda-amd64.evidence.json"]
    for _ in range(2):
        written = release_record.write(told, [state], tmp_path / "new")
        assert sorted(path.name for path in written) == wanted
        assert sorted(path.name for path in (tmp_path / "new").iterdir()) == wanted
    assert json.loads((tmp_path / "new" / "release.json").read_text()) == json.loads(json.dumps(told.as_dict()))
    assert [report.kind for report in evidence.read_files(tmp_path / "new")] == [Kind.CONTRACT, Kind.SMOKE]


def test_a_directory_with_foreign_reports_is_refused(tmp_path: Path) -> None:
    (tmp_path / "contract-cpu-amd64.evidence.json").write_text("{}")
    with pytest.raises(UsageError, match=r"has contract-cpu-amd64.evidence.json, which is not a report of 2508201420"):
        release_record.write(record(seen()), [seen()], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["contract-cpu-amd64.evidence.json"]


def test_reports_that_name_another_variant_do_not_overwrite_each_other(tmp_path: Path) -> None:
    """A report's own variant is not trusted for the name of a file."""
    image = found()
    reports = {
        kind: replace(one, evidence=replace(one.evidence, variant="../../x"))
        for kind, one in image.candidate.reports.items()
    }
    state = seen(images=(replace(image, candidate=replace(image.candidate, reports=reports)),))
    release_record.write(record(state), [state], tmp_path / "a" / "b")
    assert len(list(tmp_path.rglob("*.json"))) == len(list((tmp_path / "a" / "b").iterdir())) == 3
