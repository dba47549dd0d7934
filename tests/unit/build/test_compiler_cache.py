from __future__ import annotations

import pytest

from base_images import settings, variants
from base_images.adapters.buildkit import StepLog
from base_images.build import compiler_cache
from base_images.build.compiler_cache import Counter, Hits

# ccache 4.11.2, of three compilations: one of them the second of its kind.
STATISTICS = """\
Cacheable calls:  3 / 3 (100.0%)
  Hits:           1 / 3 (33.33%)
    Direct:       1 / 1 (100.0%)
    Preprocessed: 0 / 1 ( 0.00%)
  Misses:         2 / 3 (66.67%)
Local storage:
  Hits:           1 / 4 (25.00%)
  Misses:         2 / 3 (66.67%)
"""


def counted(*steps: str) -> Hits | None:
    counter = Counter()
    for number, text in enumerate(steps):
        for line in text.splitlines():
            counter.read(StepLog(step=str(number), line=line))
    return counter.total


def test_the_hits_of_a_build_are_those_of_its_steps() -> None:
    told = counted(STATISTICS, "[100%] Built target llama-server", STATISTICS.replace("1 / 3 (33", "20 /  30 (66"))
    assert told == Hits(hits=21, calls=33)
    assert str(told) == "21 of 33 compilations came out of the compiler's cache (63.6 %)"


def test_a_build_that_compiles_nothing_says_nothing() -> None:
    assert counted("[100%] Built target llama-server", "") is None
    assert counted() is None
    assert str(Hits()) == "0 of 0 compilations came out of the compiler's cache"


@pytest.mark.parametrize("variant", variants.VARIANTS, ids=lambda variant: variant.name)
def test_every_recipe_mounts_the_cache_that_is_saved_and_states_its_hits(variant: variants.Variant) -> None:
    text = (settings.ROOT / variant.dockerfile).read_text(encoding="utf-8")
    assert text.count("--mount=type=cache") == text.count(f"--mount={compiler_cache.MOUNT} ") >= 2
    assert "CCACHE_STATSLOG=/tmp/ccache-stats\n" in text
    libraries, server = text.split("COPY --from=web ")
    assert libraries.count("ccache --show-log-stats") == server.count("ccache --show-log-stats") == 1
    # Else the second step would say the hits of the first one again.
    assert 'rm -f "$CCACHE_STATSLOG"' in libraries.partition("ccache --show-log-stats")[2]
