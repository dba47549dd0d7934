"""The compiler's cache: how much of a build came out of it, and how it outlives a builder.

All recipes mount the same cache of BuildKit's (`MOUNT`), which a builder keeps and does not export. A hosted runner has
a new builder for each job, so the cache is kept in the registry: one image for each variant and platform, in one layer.
GitHub's own cache cannot do that: what a run on one tag saves, no run on another tag may read
(docs.github.com/en/actions/reference/workflows-and-actions/dependency-caching, "Restrictions for accessing a cache").
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from base_images.adapters import buildkit
from base_images.adapters.registry import Repository
from base_images.build import bakefile
from base_images.build.plan import BuildPlan
from base_images.recipes import dockerfile
from base_images.variants import VARIANTS, Platform, Variant

MOUNT = "type=cache,id=llama-cpp-ccache,target=/ccache"
"""The cache mount, as it is in every recipe."""

KEPT_BYTES = 2_000_000_000
"""The most that is saved of one variant and platform: what was used last."""

_COUNTED = re.compile(r"\s*Hits:\s+(\d+) */ +(\d+)\b")


@dataclass(frozen=True, kw_only=True)
class Hits:
    """How many of a build's compilations came out of the cache."""

    hits: int = 0
    calls: int = 0

    def __str__(self) -> str:
        share = f" ({100 * self.hits / self.calls:.1f} %)" if self.calls else ""
        return f"{self.hits} of {self.calls} compilations came out of the compiler's cache{share}"


class Counter:
    """Adds up what `ccache --show-log-stats` says in the steps of a build."""

    def __init__(self) -> None:
        self._of_step: dict[str, Hits] = {}

    def read(self, event: buildkit.Event) -> None:
        """Takes an event of the build; in a step, the first line counts: the others say the same of parts."""
        if isinstance(event, buildkit.StepLog) and (found := _COUNTED.match(event.line)):
            self._of_step.setdefault(event.step, Hits(hits=int(found[1]), calls=int(found[2])))

    @property
    def total(self) -> Hits | None:
        """What was counted; None where nothing was compiled, or ccache did not say."""
        found = self._of_step.values()
        return Hits(hits=sum(one.hits for one in found), calls=sum(one.calls for one in found)) if found else None


def tag(variant: Variant, platform: Platform) -> str:
    """Returns the tag of a saved cache, such as `ccache-cuda-amd64`."""
    return f"ccache-{variant.name}-{platform.architecture}"


def saved(repository: Repository, variant: Variant, platform: Platform) -> str | None:
    """Returns the reference of the cache to start from: the variant's own, else another's for the platform.

    Another's has the objects of what all variants compile alike, if the compiler is the same.

    Raises:
        RegistryError: the registry does not answer.
    """
    others = (other for other in VARIANTS if other is not variant and platform in other.platforms)
    for name in (tag(one, platform) for one in (variant, *others)):
        if digest := repository.digest(name):
            return f"{repository.name}:{name}@{digest}"
    return None


def load(plan: BuildPlan, reference: str, *, root: Path, builder: str) -> None:
    """Adds a saved cache to the builder's; what that has already stays.

    Raises:
        BuildError: the builder cannot pull it, or its disk is full.
    """
    mount = f"--mount=type=bind,from={reference},target=/saved"
    _run(plan, [f"FROM {_base(plan)}", _step("cp -an /saved/. /ccache/", mount)], "cacheonly", root, builder)


def save(plan: BuildPlan, reference: str, *, root: Path, builder: str, limit: int = KEPT_BYTES) -> None:
    """Pushes the builder's cache as an image; `limit` is how many bytes are kept, of what was used last.

    ccache sets the time of an object when it uses it, and drops the oldest itself in the same way.

    Raises:
        BuildError: the builder cannot push, or its disk is full.
    """
    oldest = f"sort -rn | awk '{{ kept += $2 }} kept > {limit} {{ print $3 }}' | xargs -r rm --"
    lines = [
        f"FROM {_base(plan)} AS copy",
        _step(f"cp -a /ccache /saved && cd /saved && find . -type f -printf '%T@ %s %p\\n' | {oldest}"),
        "FROM scratch",
        "COPY --from=copy /saved/ /",
    ]
    _run(plan, lines, f"image,name={reference},push=true,store=false", root, builder)


def _step(command: str, mount: str = "") -> str:
    """Returns a step that runs each time. `no-cache` is no way to that: BuildKit then begins a new cache mount."""
    return f"RUN --mount={MOUNT} {mount} : {secrets.token_hex(8)} && {command}"


def _base(plan: BuildPlan) -> str:
    """Returns the build base, which a builder has anyway, for its shell."""
    return plan.arguments[dockerfile.BASE_ARGUMENTS["build"]]


def _run(plan: BuildPlan, lines: Iterable[str], output: str, root: Path, builder: str) -> None:
    file: dict[str, Any] = {
        "target": {
            "cache": {
                "context": ".",
                "dockerfile-inline": "".join(f"{line}\n" for line in lines),
                "platforms": [plan.platform],
                "output": [f"type={output}"],
                "attest": bakefile.NO_ATTESTATIONS,
            }
        }
    }
    bakefile.bake(file, ["cache"], root=root, builder=builder, on_event=lambda _: None)
