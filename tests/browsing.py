"""Chromium for the tests of pages: without a network, and asked only about a page that is there as a whole."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
)  # fmt: skip


@contextmanager
def chromium(folder: Path, *flags: str) -> Iterator[Any]:
    """A browser with an empty profile that saves files to a folder; skips the test where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="browser tests need selenium (PyPI)")
    program, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not program or not driver:
        pytest.skip("browser tests need chromium and chromedriver (Debian: chromium-driver)")
    options = webdriver.ChromeOptions()
    for flag in (*FLAGS, *flags, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    options.binary_location = program
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        started.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)})
        yield started
    finally:
        started.quit()


def resize(browser: Any, width: int, theme: str) -> None:
    """Give the next pages a width in pixels (those of a phone below 600) and a colour scheme."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": theme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": features})


def load(browser: Any, address: str) -> None:
    """Open a page and wait until its scripts have run: on a busy machine `get` returns while it still loads."""
    browser.get("about:blank")  # or an address that differs in its fragment alone would not be loaded again
    browser.get_log("performance")
    browser.get_log("browser")
    browser.get(address)
    end = time.monotonic() + 60
    while browser.execute_script("return [location.href, document.readyState]") != [address, "complete"]:
        assert time.monotonic() < end, f"{address} is still not loaded"
        time.sleep(0.02)
