"""The HTML report in a real browser: Debian's Chromium, without a window."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from base_images.smoke.html import as_html
from base_images.untrusted import printable
from tests.support import smoke_reports
from tests.support.programs import need
from tests.support.servers import Handler, serving

PAGES = {
    "passed": as_html(smoke_reports.passed(), labels=smoke_reports.LABELS),
    "failed": as_html(smoke_reports.failed(), labels=smoke_reports.LABELS),
    "hostile": as_html(smoke_reports.hostile(), labels=smoke_reports.HOSTILE_LABELS),
}

PHONE = (360, 640)
DESK = (1280, 800)
A4 = (680, 1009)
"""The printable area of the sheet inside the page's margins, in CSS pixels."""

WIDER_THAN_THE_SCREEN = """
return [...document.querySelectorAll("body *")]
  .filter(element => element.checkVisibility() && element.closest("thead") === null)
  .filter(element => element.getBoundingClientRect().right > innerWidth || element.scrollWidth > element.clientWidth + 1
    && getComputedStyle(element).display !== "inline")
  .map(element => element.outerHTML.slice(0, 200));
"""

# WCAG 2.2: relative luminance and contrast ratio; success criterion 1.4.3 requires 4.5, here for text of any size.
TOO_FAINT = """
const channels = colour => colour.match(/[\\d.]+/g).map(Number);
const luminance = colour => channels(colour).slice(0, 3)
  .map(value => value / 255)
  .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
  .reduce((sum, value, index) => sum + value * [0.2126, 0.7152, 0.0722][index], 0);
const behind = element => {
  const colour = getComputedStyle(element).backgroundColor;
  return channels(colour)[3] === 0 ? behind(element.parentElement) : colour;
};
const contrast = element => {
  const [low, high] = [getComputedStyle(element).color, behind(element)].map(luminance).sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
};
return [...document.querySelectorAll("body *")]
  .filter(element => [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim()))
  .filter(element => !(contrast(element) >= 4.5))
  .map(element => element.outerHTML.slice(0, 200));
"""


class Site(Handler):
    """Serves the pages, and records the requests."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        body = PAGES.get(self.path.removeprefix("/"), "").encode()
        self.answer(200 if body else 404, body, Content_Type="text/html")


class Browser:
    """A browser window of a given size and with the user's preferences."""

    def __init__(self, driver: webdriver.Chrome, site: str) -> None:
        self.driver = driver
        self._site = site

    def open(self, name: str, size: tuple[int, int], *, scheme: str = "light", media: str = "screen") -> None:
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=size[0],
            height=size[1],
            deviceScaleFactor=1,
            mobile=size == PHONE,
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.command("Emulation.setEmulatedMedia", media=media, features=features)
        Site.asked.clear()
        self.driver.get(f"{self._site}/{name}")

    def command(self, name: str, **arguments: Any) -> Any:
        return self.driver.execute_cdp_cmd(name, arguments)

    def ask(self, script: str) -> Any:
        return self.driver.execute_script(script)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    need("chromedriver", package="chromium-driver")  # which brings chromium; 130 MB, 440 MB installed
    options = webdriver.ChromeOptions()
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in (
        "--headless",
        "--no-sandbox",  # the sandbox does not work for root, as in a container
        "--disable-dev-shm-usage",  # a container's /dev/shm is small
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(argument)
    with serving(Site) as address, pytest.MonkeyPatch.context() as environment:
        environment.setenv("no_proxy", "localhost,127.0.0.1")
        with webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver"))) as driver:
            yield Browser(driver, f"http://{address}")


@pytest.mark.parametrize("size", [PHONE, DESK])
@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_wider_than_the_screen(browser: Browser, name: str, size: tuple[int, int]) -> None:
    browser.open(name, size)
    browser.ask("document.querySelectorAll('details').forEach(details => details.open = true)")
    assert browser.ask("return document.documentElement.scrollWidth") <= size[0]
    assert browser.ask("return innerWidth") == size[0]  # a phone widens its window for a page that is too wide
    assert browser.ask(WIDER_THAN_THE_SCREEN) == []


@pytest.mark.parametrize("size", [PHONE, DESK])
def test_the_verdict_is_on_the_first_screen(browser: Browser, size: tuple[int, int]) -> None:
    browser.open("failed", size)
    heading = browser.driver.find_element(By.TAG_NAME, "h1")
    assert heading.text == "Failed"
    assert browser.ask("return document.querySelector('.computed').getBoundingClientRect().bottom < innerHeight / 2")


@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_loaded_and_the_browser_log_is_empty(browser: Browser, name: str) -> None:
    browser.driver.get_log("browser")  # type: ignore[no-untyped-call]
    browser.open(name, DESK)
    assert Site.asked == [f"/{name}"]
    assert browser.driver.get_log("browser") == []  # type: ignore[no-untyped-call]
    assert browser.ask("return [document.scripts.length, document.compatMode, document.images.length]") == [
        0,
        "CSS1Compat",
        0,
    ]


def test_a_log_is_folded_until_it_is_opened(browser: Browser) -> None:
    browser.open("hostile", PHONE)
    summary = browser.driver.find_element(By.TAG_NAME, "summary")
    log = browser.driver.find_element(By.CSS_SELECTOR, "details pre")
    assert not log.is_displayed()
    summary.send_keys(Keys.ENTER)
    assert log.is_displayed()
    # Line by line, including an empty first line.
    assert browser.ask("return document.querySelector('details pre').textContent") == printable(smoke_reports.HOSTILE)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_enough_contrast(browser: Browser, scheme: str) -> None:
    browser.open("failed", DESK, scheme=scheme)
    background = browser.ask("return getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(21, 24, 28)"}[scheme]
    assert browser.ask(TOO_FAINT) == []


def test_bars_are_proportional_to_their_values(browser: Browser) -> None:
    browser.open("failed", DESK)
    widths = browser.ask("return [...document.querySelectorAll('.speeds .bar')].map(bar => bar.clientWidth)")
    device, cpu = widths[2:4]  # 412.1 and 33.54
    assert cpu / device == pytest.approx(33.54 / 412.1, abs=0.005)
    assert device > 300


@pytest.mark.parametrize("size", [PHONE, DESK])
def test_tables_have_names_and_headers(browser: Browser, size: tuple[int, int]) -> None:
    browser.open("failed", size)
    nodes = browser.command("Accessibility.getFullAXTree")["nodes"]
    roles = [node["role"]["value"] for node in nodes if "role" in node]
    assert roles.count("table") == browser.ask("return document.querySelectorAll('table').length")
    assert roles.count("rowheader") == browser.ask("return document.querySelectorAll('tbody th').length")
    assert roles.count("columnheader") == browser.ask("return document.querySelectorAll('thead th').length")
    assert roles.count("heading") == browser.ask("return document.querySelectorAll('h1, h2, h3').length")


@pytest.mark.parametrize("name", PAGES)
def test_the_page_prints_whole(browser: Browser, name: str, tmp_path: Path) -> None:
    browser.open(name, A4, scheme="dark", media="print")
    assert browser.ask("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.ask(WIDER_THAN_THE_SCREEN) == []
    assert not browser.driver.find_element(By.TAG_NAME, "details").is_displayed()
    assert "is not printed" in browser.driver.find_element(By.CLASS_NAME, "on-paper").text
    for table in browser.driver.find_elements(By.TAG_NAME, "table"):
        assert table.is_displayed()
    # A box that scrolls on the screen is printed whole.
    assert browser.ask(
        "return [...document.querySelectorAll('.failure pre')].every(box => box.scrollHeight <= box.clientHeight)"
    )
    printed = tmp_path / "report.pdf"
    printed.write_bytes(base64.b64decode(browser.command("Page.printToPDF", preferCSSPageSize=True)["data"]))
    assert printed.read_bytes().startswith(b"%PDF-")
