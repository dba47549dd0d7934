"""pip's settings, as this environment's own pip has them."""

from __future__ import annotations

from pathlib import Path

import pytest

from base_images.adapters import pip_settings

LISTED = """\
:env:.cert='/ours'
:env:.index-url=''
download.index-url='https://download.example'
global.cert='/theirs'
global.extra-index-url='https://a.example https://b.example'
global.index-url='https://global.example'
install.no-deps='1'
"""


def test_a_command_s_settings_win_over_the_global_ones_and_variables_over_both() -> None:
    common = {"cert": "/ours", "extra-index-url": "https://a.example https://b.example"}
    assert pip_settings.parse(LISTED, "download") == {**common, "index-url": "https://download.example"}
    assert pip_settings.parse(LISTED, "install") == {**common, "index-url": "https://global.example", "no-deps": "1"}
    assert pip_settings.parse("", "install") == {}


@pytest.mark.parametrize("variable", ["PIP_USER", "PIP_SITE", "PIP_PYTHON"])
def test_the_files_are_read_whatever_else_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    configuration = tmp_path / "pip.conf"
    configuration.write_text("[global]\nuser = true\nindex-url = https://here.example/simple\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(configuration))
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    monkeypatch.setenv(variable, "/nowhere/python" if variable == "PIP_PYTHON" else "1")
    assert pip_settings.read("download")["index-url"] == "https://here.example/simple"


def test_only_the_settings_of_the_connection_stay() -> None:
    inherited = {"HOME": "/h", "PIP_USER": "1", "PIP_CERT": "/x", "PYTHONPATH": "/p", "HTTPS_PROXY": "http://p"}
    settings = {"user": "1", "cert": "/y", "default-timeout": "9", "target": "/t", "constraint": "/c"}
    assert pip_settings.for_connection(inherited, settings) == {
        "HOME": "/h",
        "HTTPS_PROXY": "http://p",
        "PIP_CERT": "/y",
        "PIP_DEFAULT_TIMEOUT": "9",
        "PIP_CONFIG_FILE": "/dev/null",
    }
