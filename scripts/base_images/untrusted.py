"""Text from outside, such as labels, file names, logs and what servers say, made safe to show.

`printable` serves terminals, HTML and XML; `markdown.py` builds on it, and so does what is written to GitHub's log.
"""

from __future__ import annotations

import re

_ESCAPE_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # CSI, such as colours (ECMA-48, section 5.4)
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)"  # OSC and other strings (5.6)
    r"|\x1b[ -/]*[0-~]"  # the others (ECMA-35, section 13)
)

_NOT_PRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # controls; not tab and line feed
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # change the order in which text is shown (Unicode TR 36)
    "\u2028\u2029"  # separate lines
    "\ud800-\udfff"  # cannot be encoded; a file name that is not UTF-8 has them
    # Neither HTML (HTML Standard, 13.2.3.5) nor, on the first plane, XML 1.0 allows these, not even escaped.
    "\ufdd0-\ufdef" + "".join(f"{chr(end - 2)}{chr(end - 1)}" for end in range(0x10000, 0x110001, 0x10000)) + "]"
)

_COMMAND = re.compile(r"^(\s*)::|##\[", re.MULTILINE)
"""What may be a workflow command: `::` after white space alone, `##[` anywhere (actions/runner, ActionCommand.cs)."""


def printable(text: str) -> str:
    """Returns text without control sequences, and with U+FFFD for every other character that may not be shown.

    Lines end in a line feed alone. The result may be printed to a terminal, escaped for HTML, or escaped for XML.
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    return _NOT_PRINTABLE.sub("\N{REPLACEMENT CHARACTER}", _ESCAPE_SEQUENCE.sub("", lines))


def without_commands(text: str) -> str:
    """Returns whole lines for GitHub's log, with a backslash in what would be a workflow command."""
    return _COMMAND.sub(lambda found: "##[\\" if found[0] == "##[" else f"{found[1]}\\::", text)
