"""GitHub's workflows: every command exists, and no job has more permissions than it needs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import tasks
from invoke.collection import Collection
from invoke.parser import Parser

from base_images import settings, variants, versions
from base_images.release import issue, matrix
from base_images.variants import VARIANTS, Variant
from tests.support import workflows
from tests.support.workflows import DIRECTORY, OWN_WORKFLOW, Step, UnknownExpressionError

FILES = sorted(DIRECTORY.glob("*.yml"))
PARSED = {path.name: workflows.load(path) for path in FILES}
CALLED = {file for file, workflow in PARSED.items() if set(workflow["on"]) == {"workflow_call"}}
"""Workflows that run as jobs of others."""
JOBS = [pytest.param(file, job, id=f"{file}:{job}") for file, one in PARSED.items() for job in one["jobs"]]

READ: Mapping[str, str] = {"contents": "read"}
BUILD = {**READ, "packages": "write"}
PULL = {**READ, "packages": "read"}
SIGN = {**BUILD, "id-token": "write", "attestations": "write"}
PAGES = {**PULL, "pages": "write", "id-token": "write"}
PERMISSIONS: Mapping[str, Mapping[str, Mapping[str, str]]] = {
    "ci.yml": {"test": READ},
    "release.yml": {
        "plan": READ,
        "variants": SIGN,
        "promote": {**BUILD, "attestations": "read"},
        "status": PAGES,
        "rebuild": BUILD,
        "release": {"contents": "write", "packages": "read"},
    },
    "variant.yml": {
        **dict.fromkeys(("build", "merge", "attach"), BUILD),
        **dict.fromkeys(("check", "scan"), PULL),
        "sign": SIGN,
    },
    "scan.yml": {"scan": PULL},
    "nightly.yml": {
        **dict.fromkeys(("plan", "scan"), PULL),
        "verify": {**READ, "attestations": "read"},  # what a user can pull: nothing that could read packages
        "issue": {**READ, "issues": "write"},
        "status": PAGES,
    },
    "status.yml": {"page": PULL, "deploy": {"pages": "write", "id-token": "write"}},
    "upstream.yml": {"bump": {"contents": "write", "pull-requests": "write", "actions": "write"}},
}
"""The most that a job may have; a new permission needs a line here too."""

HOSTED = re.compile(r"ubuntu-24\.04(-arm)?")
"""GitHub-hosted runners with a version: `latest` could change during a release."""

INVOKE = r"sh scripts/bootstrap\.sh invoke ([^;&|<>`()\n]+)"
FORMS = (
    INVOKE,
    rf"(?P<name>\w+)=\$\({INVOKE}\)\necho \"(?P=name)=\$(?P=name)\" >> \"\$GITHUB_OUTPUT\"",
    r"sh scripts/bootstrap\.sh nox",
    r"gh workflow run (?P<started>\w+\.yml) --ref [\w-]+",
    r'cosign sign --yes "\$REPOSITORY@\$DIGEST"',
)
"""The only forms of a `run` step: decisions are made in Python, where they are tested."""

GPU, CPU = variants.find("cuda"), variants.find("cpu")
VERSION = versions.parse("2508201420-abc1234")
REGISTRY = "registry.example.org/x"
RUNNERS = {"RUNNER_CUDA": "machine-of-ours"}
DIGEST = f"sha256:{'0' * 64}"
BASES = {"docker.io/node:24": DIGEST}
TAGGED = f"refs/tags/{VERSION.git_tag}"


def lines(file: str, job: str) -> list[str]:
    """Returns the `run` lines of a job, each as the shell reads it."""
    steps = PARSED[file]["jobs"][job].get("steps", [])
    return [re.sub(r"\\\n\s*", "", step["run"]).strip() for step in steps if "run" in step]


def commands() -> list[Any]:
    """Returns the arguments of every `invoke` in the workflows."""
    found = [
        (file, job, line) for file, workflow in PARSED.items() for job in workflow["jobs"] for line in lines(file, job)
    ]
    return [
        pytest.param(arguments, id=f"{file}:{job}:{arguments.split()[0]}")
        for file, job, line in found
        for arguments in re.findall(INVOKE, line)
    ]


def walk(
    file: str,
    *,
    ref: str = TAGGED,
    dry_run: bool | None = None,
    fails: Callable[[Step], bool] = lambda _: False,
    operation: str = "created",
    latest: Sequence[Variant] = (GPU, CPU),
) -> list[Step]:
    """Returns the steps that GitHub runs of a workflow for two variants; `fails` chooses those that fail.

    `latest` are those that were promoted.
    """
    contexts = {
        "github": {
            "ref": ref,
            "ref_type": "tag" if ref.startswith("refs/tags/") else "branch",
            "actor": "somebody",
            "token": "not-a-secret",
            "repository": "somebody/llama.cpp",
            "event": {"pull_request": {"number": "1"}},
        },
        "vars": RUNNERS,
        "secrets": {"GITHUB_TOKEN": "not-a-secret"},
        "inputs": {"dry_run": dry_run},
    }
    run = []
    for step in workflows.steps(file, contexts):
        run.append(step)
        step.succeeded = not fails(step)
        if "--format matrix" in step.run:
            wanted = [(variant, variant.platforms) for variant in (GPU, CPU)]
            plan = matrix.matrix(wanted, VERSION, registry=REGISTRY, runners=step.environment.get("RUNNERS", ""))
            step.outputs["matrix"] = json.dumps(plan)
        elif "--format latest" in step.run and step.succeeded:
            jobs = matrix.nightly([(one, one.platforms) for one in latest], registry=REGISTRY)
            step.outputs["latest"] = json.dumps(jobs)
        elif "lock-bases --json" in step.run:
            step.outputs["bases"] = json.dumps(BASES)
        elif "image-digest" in step.run:
            step.outputs["digest"] = DIGEST
        elif "create-pull-request" in step.uses:
            step.outputs["pull-request-operation"] = operation
    return run


def ran(steps: list[Step]) -> list[str]:
    """Returns the job and the task or action of each step."""
    names = [(step.job, re.search(r"invoke (\S+)|(cosign) sign", step.run), step.uses.split("@")[0]) for step in steps]
    return [f"{job}: {(found[1] or found[2]) if found else action}" for job, found, action in names]


def test_the_permissions_table_has_every_workflow_and_job() -> None:
    assert set(PARSED) == set(PERMISSIONS)
    assert not list(DIRECTORY.glob("*.yaml"))
    for file, jobs in PERMISSIONS.items():
        assert set(PARSED[file]["jobs"]) == set(jobs)


def test_actions_are_pinned_and_one_action_has_one_version() -> None:
    pins: dict[str, set[str]] = {}
    for path in FILES:
        for line in path.read_text(encoding="utf-8").splitlines():
            if "uses:" not in line:
                continue
            used = line.split("uses:")[1].strip()
            if used.startswith(OWN_WORKFLOW):
                assert (DIRECTORY / used.removeprefix(OWN_WORKFLOW)).exists()
                continue
            match = re.fullmatch(r"([\w.-]+/[\w.-]+)@([0-9a-f]{40} # v\d+\.\d+\.\d+)", used)
            assert match, f"{path.name}: {used}"
            pins.setdefault(match[1], set()).add(match[2])
    assert pins
    assert {action: found for action, found in pins.items() if len(found) > 1} == {}


@pytest.mark.parametrize(("file", "job"), JOBS)
def test_a_job_has_a_timeout_no_credentials_and_no_more_permissions_than_the_table(file: str, job: str) -> None:
    described = PARSED[file]["jobs"][job]
    assert PARSED[file]["permissions"] == {}
    given = described["permissions"].items()
    assert {key: value for key, value in given if PERMISSIONS[file][job].get(key) != value} == {}
    if "steps" in described:
        assert 0 < int(described["timeout-minutes"]) <= 350
    assert described.get("strategy", {"fail-fast": "false"})["fail-fast"] == "false"
    for step in described.get("steps", []):
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"] == {"persist-credentials": "false", "fetch-depth": "0"}


@pytest.mark.parametrize("file", sorted(set(PARSED) - CALLED))
def test_concurrent_runs_of_a_workflow_do_not_interfere(file: str) -> None:
    concurrency = PARSED[file]["concurrency"]
    assert concurrency["group"]
    # What publishes is never cut off.
    assert concurrency["cancel-in-progress"] == ("false" if file in ("release.yml", "status.yml") else "true")
    if file == "release.yml":
        for dry_run, group in ((None, "release-false"), (False, "release-false"), (True, "release-true")):
            assert workflows.resolve(concurrency["group"], {"inputs": {"dry_run": dry_run}}) == group


@pytest.mark.parametrize(("file", "job"), JOBS)
def test_a_run_step_is_one_command(file: str, job: str) -> None:
    for line in lines(file, job):
        assert "${{" not in line, "values reach a command by its environment"
        assert any(re.fullmatch(form, line) for form in FORMS), line


@pytest.mark.parametrize("arguments", commands())
def test_a_command_exists_with_its_options(arguments: str) -> None:
    parser = Parser(contexts=Collection.from_module(tasks).to_contexts())
    parser.parse_argv(arguments.replace('"', "").split())


@pytest.mark.parametrize("path", [*FILES, settings.ROOT / ".github" / "dependabot.yml"], ids=lambda path: path.name)
def test_no_list_of_variants(path: Path) -> None:
    text = path.read_text(encoding="utf-8").lower()
    assert [variant.name for variant in VARIANTS if re.search(rf"(?<![a-z]){variant.name}(?![a-z])", text)] == []


@pytest.mark.parametrize("file", sorted(set(PARSED) - CALLED))
def test_a_command_finds_its_variables(file: str) -> None:
    steps = walk(file)
    assert steps
    for step in steps:
        assigned = re.findall(r"^(\w+)=", step.run, re.MULTILINE)
        for name in re.findall(r"\$(\w+)", step.run):
            if name != "GITHUB_OUTPUT" and name not in assigned:
                assert step.environment[name], f"{step.job}: {name}"


@pytest.mark.parametrize("file", sorted(set(PARSED) - CALLED))
def test_self_hosted_runners_run_only_checks_of_a_tagged_commit(file: str) -> None:
    assert not {"pull_request_target", "workflow_run", "issue_comment"} & set(PARSED[file]["on"])
    ours = {step.job for step in walk(file) if not HOSTED.fullmatch(step.runner)}
    assert ours == ({"variants/check"} if file == "release.yml" else set())
    assert all(HOSTED.fullmatch(step.runner) for step in walk(file, ref="refs/heads/main"))


def test_ci_runs_the_readmes_command_on_both_architectures() -> None:
    steps = [step for step in walk("ci.yml") if step.run]
    assert [step.runner for step in steps] == ["ubuntu-24.04", "ubuntu-24.04-arm"]
    readme = (settings.ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"```sh\n{step.run}\n```" in readme for step in steps)


@pytest.mark.parametrize(("operation", "starts"), [("created", True), ("updated", True), ("none", False), ("", False)])
def test_the_pull_request_on_upstream_is_tested(operation: str, starts: bool) -> None:
    # Also where BodhiApp has changed, which fails the step before.
    *_, locked, opened, last = walk(
        "upstream.yml", operation=operation, fails=lambda step: "check-consumer" in step.run
    )
    locked, opened, started = (locked, opened, last) if starts else (opened, last, None)
    assert "invoke lock-bases --report" in locked.run
    assert opened.inputs["branch"] == "follow-upstream"
    assert (started is not None) is starts
    if started:
        assert started.run == "gh workflow run ci.yml --ref follow-upstream"
    assert "workflow_dispatch" in PARSED["ci.yml"]["on"]


def test_the_steps_of_a_release_in_order() -> None:
    told = [name for name in ran(walk("release.yml")) if not name.endswith(("actions/checkout", "docker/login-action"))]
    around = ("load-compiler-cache", "bake", "save-compiler-cache")
    build = [f"variants/build: {name}" for name in ("free-runner-disk", "docker/setup-buildx-action", *around)]
    check = [
        f"variants/check: {name}" for name in ("free-runner-disk", "check-image", "smoke", "actions/upload-artifact")
    ]
    scan = [
        f"variants/scan/scan: {name}" for name in ("free-runner-disk", "anchore/scan-action", "actions/upload-artifact")
    ]
    attach = [f"variants/attach: {name}" for name in ("actions/download-artifact", "attach-reports")]
    sign = [
        f"variants/sign: {name}" for name in ("sigstore/cosign-installer", "image-digest", "cosign", "actions/attest")
    ]
    of_each = [
        [*build * count, "variants/merge: publish", *scan * count, *check * count, *sign, *attach]
        for count in (len(GPU.platforms), len(CPU.platforms))
    ]
    assert told == [
        "plan: check-version",
        "plan: plan",
        "plan: lock-bases",
        *of_each[0],
        *of_each[1],
        *(f"rebuild: {name}" for name in ("free-runner-disk", "verify-reproducible", "attach-reports")),
        *(f"rebuild: {name}" for name in ("free-runner-disk", "verify-reproducible", "attach-reports")),
        "promote: sigstore/cosign-installer",
        "promote: promote",
        "status/page: status-page",
        "status/page: actions/upload-pages-artifact",
        "status/deploy: actions/deploy-pages",
        "release: release-notes",
        "release: actions/download-artifact",
        "release: softprops/action-gh-release",
    ]


def test_the_steps_of_a_release_get_its_values() -> None:
    steps = walk("release.yml")
    assert {step.environment.get("BASE_IMAGES_DRY_RUN", "false") for step in steps} == {"false"}
    baked = [
        (step.environment["VARIANT"], step.environment["PLATFORM"], step.runner) for step in steps if "bake" in step.run
    ]
    assert baked == [
        ("cuda", "linux/amd64", "ubuntu-24.04"),
        ("cpu", "linux/amd64", "ubuntu-24.04"),
        ("cpu", "linux/arm64", "ubuntu-24.04-arm"),
    ]
    resolved = [json.loads(step.environment["BASE_IMAGES_BASES"]) for step in steps if "bake" in step.run]
    assert resolved == [BASES] * len(baked), "once, for all jobs"
    image = f"{REGISTRY}:{versions.image_tag(GPU.name, VERSION)}"
    smoked = next(step for step in steps if "invoke smoke" in step.run)
    assert (smoked.environment["IMAGE"], smoked.environment["DEVICE"], smoked.runner) == (
        image,
        "host",
        RUNNERS["RUNNER_CUDA"],
    )
    signed = next(step for step in steps if "cosign sign" in step.run)
    assert (signed.environment["REPOSITORY"], signed.environment["DIGEST"]) == (REGISTRY, DIGEST)
    verifying = next(step for step in steps if "invoke promote" in step.run)
    assert verifying.environment["GH_TOKEN"], "`gh attestation verify` needs it"
    attested = next(step for step in steps if step.uses.startswith("actions/attest@"))
    assert (attested.inputs["subject-name"], attested.inputs["subject-digest"]) == (REGISTRY, DIGEST)
    [promoted] = [step for step in steps if "invoke promote" in step.run]
    assert promoted.environment["VERSION"] == str(VERSION)
    assert [step.inputs["tag_name"] for step in steps if "gh-release" in step.uses] == [VERSION.git_tag]


def test_the_commands_of_a_variants_workflow_name_the_variant() -> None:
    found = [line for job in PARSED["variant.yml"]["jobs"] for line in lines("variant.yml", job)]
    about_one = [line for line in found if re.search("invoke (bake|publish|smoke|image-digest|.*-cache) ", f"{line} ")]
    assert len(about_one) == 6
    assert [line for line in about_one if '--variant "$VARIANT"' not in line] == []


def test_reports_reach_the_job_that_attaches_them_and_scans_the_release() -> None:
    steps = walk("release.yml")
    uploads = [step.inputs for step in steps if "upload-artifact" in step.uses]
    assert {inputs["overwrite"] for inputs in uploads} == {"true"}, "a job that runs again uploads again"
    names = [inputs["name"] for inputs in uploads]
    patterns = [step.inputs["pattern"] for step in steps if "download-artifact" in step.uses]
    of_each = [[name for name in names if fnmatch(name, pattern)] for pattern in patterns]
    assert of_each == [
        ["reports-cuda-amd64"],
        ["reports-cpu-amd64", "reports-cpu-arm64"],
        ["scan-cuda-amd64", "scan-cpu-amd64", "scan-cpu-arm64"],
    ]
    published = next(step.inputs for step in steps if "gh-release" in step.uses)
    downloaded = [step.inputs for step in steps if "download-artifact" in step.uses][-1]
    assert (published["files"], downloaded["merge-multiple"]) == (f"{downloaded['path']}/**", "true")


@pytest.mark.parametrize(
    ("file", "tag"),
    [("release.yml", lambda name: versions.image_tag(name, VERSION)), ("nightly.yml", versions.latest_tag)],
)
def test_every_platform_is_scanned_and_fails_for_what_has_a_fix(file: str, tag: Callable[[str], str]) -> None:
    wanted = [(f"registry:{REGISTRY}:{tag(one.name)}", at.docker) for one in (GPU, CPU) for at in one.platforms]
    steps = walk(file)
    scans = [step for step in steps if step.uses.startswith("anchore/scan-action@")]
    assert [(step.inputs["image"], step.environment["GRYPE_PLATFORM"]) for step in scans] == wanted
    for step in scans:
        assert (step.inputs["only-fixed"], step.inputs["severity-cutoff"]) == ("true", "high")
        assert step.inputs.get("fail-build", "true") == "true"
    written = [step.inputs["output-file"] for step in scans]
    assert [step.inputs["path"] for step in steps if "upload-artifact" in step.uses and "/scan" in step.job] == written
    assert len(set(written)) == len(written), "the files of a release lie in one directory"


def test_at_night_every_platform_of_what_is_latest_is_verified_without_a_login() -> None:
    steps = walk("nightly.yml")
    told = [name for name in ran(steps) if name.startswith("verify: ")]
    of_each = ["actions/checkout", "free-runner-disk", "sigstore/cosign-installer", "verify-latest"]
    assert told == [f"verify: {name}" for name in (*of_each, "actions/upload-artifact")] * 3
    verified = [step for step in steps if "verify-latest" in step.run]
    assert [(step.environment["VARIANT"], step.environment["DEVICE"], step.runner) for step in verified] == [
        ("cuda", "nothing", "ubuntu-24.04"),
        ("cpu", "host", "ubuntu-24.04"),
        ("cpu", "host", "ubuntu-24.04-arm"),
    ]
    assert {step.environment["GH_TOKEN"] for step in verified} == {"not-a-secret"}, "`gh attestation verify` needs it"


def never(_: Step) -> bool:
    return False


@pytest.mark.parametrize(
    "fails",
    [
        never,
        lambda step: "verify-latest" in step.run,
        lambda step: "scan-action" in step.uses,
        lambda step: "--format latest" in step.run,
    ],
)
def test_the_nightly_issue_gets_every_result_whatever_fails(fails: Callable[[Step], bool]) -> None:
    steps = walk("nightly.yml", fails=fails)
    downloaded, reported = [step for step in steps if step.job == "issue"][-2:]
    assert (reported.environment["GH_REPO"], reported.environment["GH_TOKEN"]) == (
        "somebody/llama.cpp",
        "not-a-secret",
    )
    assert reported.run.endswith(f"invoke report-latest {downloaded.inputs['path']}")
    assert downloaded.inputs["merge-multiple"] == "true"
    uploads = [step.inputs["name"] for step in steps if step.uses.startswith("actions/upload-artifact")]
    assert [name for name in uploads if not fnmatch(name, downloaded.inputs["pattern"])] == []
    jobs = issue.parse_jobs(reported.environment["LATEST"])
    expected = [f"{kind}-{job['variant']}-{job['architecture']}" for job in jobs or () for kind in ("latest", "scan")]
    assert sorted(uploads) == sorted(expected)
    assert (jobs is None) is fails(Step(job="", runner="", run="--format latest", uses="", inputs={}, environment={}))
    assert "status/deploy: actions/deploy-pages" in ran(steps)


def test_a_night_with_nothing_promoted_is_green() -> None:
    steps = walk("nightly.yml", latest=())
    assert {step.job for step in steps} == {"plan", "issue", "status/page", "status/deploy"}
    [reported] = [step for step in steps if "report-latest" in step.run]
    assert reported.environment["LATEST"] == "[]"


@pytest.mark.parametrize("file", ["release.yml", "nightly.yml", "status.yml"])
def test_the_status_page_that_is_made_is_published(file: str) -> None:
    steps = walk(file)
    [made] = [step for step in steps if "status-page" in step.run]
    [uploaded] = [step for step in steps if "upload-pages-artifact" in step.uses]
    assert made.run.endswith(f" --output {uploaded.inputs['path']}")


@pytest.mark.parametrize(
    ("ref", "dry_run"),
    [
        (TAGGED, True),
        ("refs/heads/main", True),
        ("refs/heads/main", False),
        (f"refs/heads/{VERSION.git_tag}", False),
        ("refs/tags/base-images/v1", None),
    ],
)
def test_a_rehearsal_builds_without_publishing(ref: str, dry_run: bool | None) -> None:
    steps = walk("release.yml", ref=ref, dry_run=dry_run)
    assert {step.job for step in steps} == {"plan", "variants/build"}
    baked = [step for step in steps if "bake" in step.run]
    assert len(baked) == 3
    assert {step.environment["BASE_IMAGES_DRY_RUN"] for step in baked} == {"true"}


def of_variant(name: str, text: str) -> Callable[[Step], bool]:
    """Matches the steps of a variant whose line has the text."""
    return lambda step: step.environment.get("VARIANT") == name and text in step.run


def test_a_build_that_fails_stops_its_variant_only() -> None:
    steps = walk("release.yml", fails=of_variant(GPU.name, " bake "))
    jobs = {(step.job, step.environment.get("VARIANT")) for step in steps if step.job.startswith("variants/")}
    assert {job for job, variant in jobs if variant == GPU.name} == {"variants/build"}
    assert ("variants/sign", "cpu") in jobs
    assert [step.job for step in steps if step.job in ("promote", "release") and step.run] == ["promote", "release"]


def test_the_compilers_cache_is_saved_after_a_failure_and_never_stops_a_release() -> None:
    steps = walk("release.yml", fails=of_variant(GPU.name, "invoke bake"))
    saved = [step.environment["VARIANT"] for step in steps if "invoke save-compiler-cache" in step.run]
    assert saved == [GPU.name, *(CPU.name for _ in CPU.platforms)]
    told = ran(walk("release.yml", fails=lambda step: "compiler-cache" in step.run))
    assert told == ran(walk("release.yml"))


@pytest.mark.parametrize("failing", ["invoke check-image", "invoke smoke"])
def test_a_failed_check_is_reported_and_not_signed(failing: str) -> None:
    steps = walk("release.yml", fails=of_variant(GPU.name, failing))
    done = [name for step, name in zip(steps, ran(steps), strict=True) if step.environment.get("VARIANT") == GPU.name]
    for told in ("check: check-image", "check: smoke", "check: actions/upload-artifact", "attach: attach-reports"):
        assert f"variants/{told}" in done
    assert not [name for name in done if name.startswith("variants/sign")]
    assert "release: softprops/action-gh-release" in ran(steps)


def test_an_image_with_a_vulnerability_is_reported_and_not_signed() -> None:
    steps = walk("release.yml", fails=lambda step: "scan-action" in step.uses and GPU.name in step.inputs["image"])
    done = [name for step, name in zip(steps, ran(steps), strict=True) if step.environment.get("VARIANT") == GPU.name]
    assert "variants/attach: attach-reports" in done
    assert not [name for name in done if name.startswith("variants/sign")]
    assert f"scan-{GPU.name}-amd64" in [step.inputs["name"] for step in steps if "upload-artifact" in step.uses]
    signed = [step.environment["VARIANT"] for step in steps if "cosign sign" in step.run]
    assert signed == [CPU.name]
    assert ran(steps)[-1] == "release: softprops/action-gh-release"


def test_without_a_plan_there_is_no_release() -> None:
    assert {step.job for step in walk("release.yml", fails=lambda step: "invoke plan" in step.run)} == {"plan"}


def test_a_difference_between_two_builds_is_attached_and_stops_nothing() -> None:
    steps = walk("release.yml", fails=lambda step: "verify-reproducible" in step.run)
    told = ran(steps)
    assert told.count("rebuild: attach-reports") == len(CPU.platforms)
    assert "promote: promote" in told
    assert told[-1] == "release: softprops/action-gh-release"
    images = {step.environment["IMAGE"] for step in steps if "verify-reproducible" in step.run}
    assert images == {f"{REGISTRY}:{versions.image_tag(CPU.name, VERSION)}"}


def test_a_refused_promotion_still_makes_the_release() -> None:
    assert "release: release-notes" in ran(walk("release.yml", fails=lambda step: "invoke promote" in step.run))


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("github.ref == 'REFS/x' && 1", 1),
        ("null || 'a''b'", "a'b"),
        ("!(github.ref != 'refs/x') && fromJSON('[3, 4]')[1]", 4),
        ("format('{0}/{1}', github.ref, true)", "refs/x/true"),
        ("github.ref == 'y' && github.nothing", False),
    ],
)
def test_expressions_are_evaluated(expression: str, value: object) -> None:
    assert workflows.evaluate(expression, {"github": {"ref": "refs/x"}}) == value


@pytest.mark.parametrize(
    "expression",
    [
        *("github.nothing", "runner.os", "hashFiles('x')", "github.ref <= 'x'", "success()", "github"),
        *("1 == 1", "(1", "", "a b"),
    ],
)
def test_unknown_expressions_are_errors(expression: str) -> None:
    with pytest.raises(UnknownExpressionError):
        workflows.resolve(f"${{{{ {expression} }}}}", {"github": {"ref": "refs/x"}})


def test_a_tag_outside_the_release_branch_builds_nothing() -> None:
    steps = ran(walk("release.yml", fails=lambda step: "check-version --released" in step.run))
    assert steps[-1] == "plan: check-version"
    assert not any("bake" in step or "promote" in step for step in steps)


def test_a_rehearsal_on_a_branch_needs_no_release() -> None:
    assert "plan: check-version" not in ran(walk("release.yml", ref="refs/heads/main", dry_run=True))


def test_latest_moves_in_an_environment_that_can_be_protected() -> None:
    assert PARSED["release.yml"]["jobs"]["promote"]["environment"] == "release"
