"""A real browser for tests of pages: Debian's Chromium, driven by Playwright, never downloaded.

Where there is no browser the tests skip; in CI (the variable CI is set) they fail.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)

LOUD = {"error", "warning"}


def missing(what: str) -> NoReturn:
    """Skip the test, or fail it in CI."""
    if os.environ.get("CI"):
        pytest.fail(f"{what} is missing, and CI must have it.")
    pytest.skip(f"{what} is missing.")


def needs(*packages: str) -> None:
    """The test cannot go on without these packages."""
    for package in packages:
        if find_spec(package) is None:
            missing(package)


@contextmanager
def launched() -> Iterator["Browser"]:
    """A browser for one module's tests."""
    path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if path is None:
        missing("chromium")
    needs("playwright")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


@contextmanager
def watched(
    browser: "Browser", url: str, *, console: bool = True, **options: object
) -> Iterator["Page"]:
    """A page that must end without an error, and without a request beyond its own origin.

    With `console` False the host's own complaints on the console do not count.
    """
    wrong: list[str] = []
    page = browser.new_page(**options)
    own = urlsplit(url)
    page.set_default_timeout(20_000)
    if console:
        page.on("console", lambda m: wrong.append(m.text) if m.type in LOUD else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))

    def check_request(requested: str) -> None:
        to = urlsplit(requested)
        if to.scheme in {"data", "blob"}:  # inside the page already
            return
        if own.scheme == "file" and requested != url or to.netloc != own.netloc:
            wrong.append(f"requested {requested}")

    page.on("request", lambda request: check_request(request.url))
    page.goto(url)
    try:
        yield page
        assert not wrong, wrong
    finally:
        page.close()


@contextmanager
def opened(browser: "Browser", path: Path, **options: object) -> Iterator["Page"]:
    """An exported page, opened from its file and drawn."""
    with watched(browser, path.as_uri(), **options) as page:
        page.wait_for_selector("[data-ready=true]")
        yield page
