"""Fixtures of the page's tests, a pytest plugin: a page that is served, and a browser."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from oes_fast.cli.watched import run_watched
from oes_fast.ui.server import Site, site

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def served() -> Iterator[Site]:
    """A page at an address; skips the test where Gradio is not here."""
    pytest.importorskip("gradio")
    with site(run_watched, port=0, models=("skip", "unet"), threads=1) as page:
        thread = threading.Thread(target=page.serve, daemon=True)
        thread.start()
        while not page.server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield page
        page.server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium; skips the test where it or Playwright is not here."""
    playwright = pytest.importorskip("playwright.sync_api")
    found = next((path for name in _BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("Chromium is not installed")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield chromium
        chromium.close()
