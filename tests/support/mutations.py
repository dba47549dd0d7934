"""Mutated inputs for parsers, the same on every run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from random import Random

_SEED = 13
_ODD = (
    *("{}()[]\"'\\`$=:,;#*|\0\r\x0b\té \n\u2028"),
    *("\\\n", "${", "$(", "&&", "\x1b[1m", "<<EOF", "\nEOF\n", "--x=", "9" * 5000, "-1", "[5]", "[" * 3000),
    *("\nFROM ", " AS ", "\nRUN ", '\nCOPY ["a", ', "\nONBUILD ", "\nENV ", "\nARG A=$A$A", "case x in esac"),
)


def of_text(texts: Sequence[str], count: int) -> Iterator[str]:
    """Yields texts with words removed, repeated, moved and replaced."""
    random = Random(_SEED)  # noqa: S311 - a fixed seed is the point
    words = [re.findall(r"\w+|\s+|.", text, re.DOTALL) for text in texts]
    for _ in range(count):
        changed = list(random.choice(words))
        for _ in range(random.randint(1, 4)):
            at, other = random.randrange(len(changed)), random.randrange(len(changed))
            match random.randrange(5):
                case 0:
                    del changed[at : at + random.choice([1, 1, 5, 50])]
                case 1:
                    changed[at] = changed[other]
                case 2:
                    changed[at:at] = changed[max(0, at - random.randint(1, 40)) : at]
                case 3:
                    changed[at] = random.choice(_ODD)
                case 4:
                    changed = changed[:at]
            changed = changed or [""]
        yield "".join(changed)


def of_bytes(data: Sequence[bytes], count: int) -> Iterator[bytes]:
    """Yields data with bits flipped, and bytes removed, repeated or replaced."""
    random = Random(_SEED)  # noqa: S311
    for _ in range(count):
        changed = bytearray(random.choice(data))
        for _ in range(random.randint(1, 4)):
            start = random.randrange(len(changed))
            end = min(len(changed), start + random.choice([1, 2, 8, 100, 512]))
            match random.randrange(4):
                case 0:
                    changed[start] ^= 1 << random.randrange(8)
                case 1:
                    del changed[start:end]
                case 2:
                    changed[start:start] = changed[start:end]
                case 3:
                    changed[start:end] = random.choice([b"\0", b"/", b".", b"\xff", b"0"]) * (end - start)
        yield bytes(changed)
