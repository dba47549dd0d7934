"""A stand-in for `gh` with the issues of one repository, kept in a file: a test cannot have GitHub."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

PROGRAM = """\
#!{python}
import json, pathlib, re, sys
if sys.argv[1] in ("attestation", "workflow"):
    sys.exit()
api, method_, method, path, *body = sys.argv[1:]
assert (api, method_) == ("api", "--method"), sys.argv
assert method == "GET" or body[0] == "--input", sys.argv
sent = json.loads(pathlib.Path(body[1]).read_text()) if body else {{}}
store = pathlib.Path({store!r})
issues = json.loads(store.read_text())
prefix = "repos/{{owner}}/{{repo}}/issues"
labels = pathlib.Path({store!r} + ".labels")
if path == "repos/{{owner}}/{{repo}}/labels":
    if labels.exists():
        sys.exit("gh: Validation Failed (HTTP 422)")
    labels.write_text(sent["name"])
    print("{{}}")
    sys.exit()
assert path.startswith(prefix), path
number = re.search(r"issues/(\\d+)", path)
answer = {{}}
if method == "GET":
    assert path == prefix + "?state=open&labels=nightly&per_page=100", path
    answer = [issue for issue in issues if issue["state"] == "open" and "nightly" in issue["labels"]]
elif path == prefix:
    assert sent["labels"] == [labels.read_text()], "a label that does not exist"
    answer = {{"number": len(issues) + 1, "state": "open", "comments": [], **sent}}
    issues.append(answer)
elif path.endswith("/comments"):
    issues[int(number[1]) - 1]["comments"].append(sent["body"])
else:
    assert method == "PATCH", sys.argv
    issues[int(number[1]) - 1].update(sent)
store.write_text(json.dumps(issues))
print(json.dumps(answer))
"""


class Issues:
    """The issues, and the program that changes them as `gh` does."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._store = directory / "issues.json"
        self._store.write_text("[]", encoding="utf-8")
        self.program = directory / "gh"
        self.program.write_text(PROGRAM.format(python=sys.executable, store=str(self._store)), encoding="utf-8")
        self.program.chmod(0o755)

    @property
    def all(self) -> list[dict[str, Any]]:
        """Every issue, oldest first."""
        return list(json.loads(self._store.read_text(encoding="utf-8")))

    def add(self, **fields: Any) -> None:
        """Adds an open issue with the label."""
        known = {"number": len(self.all) + 1, "state": "open", "labels": ["nightly"], "comments": [], "body": ""}
        self._store.write_text(json.dumps([*self.all, {**known, **fields}]), encoding="utf-8")
