"""The page in headless Chromium."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optional_packages
import pytest
from cli_runs import assert_same_run, run_in
from ui_runs import LONG, SMALL, picture_file

from oes_fast.ui.form import MAX_BYTES
from oes_fast.ui.server import Site

pytest_plugins = ("ui_fixtures",)
SECONDS = 20_000  # milliseconds that something may take


@pytest.fixture
def elsewhere() -> list[str]:
    """Addresses that pages asked for and that are not the server's."""
    return []


@pytest.fixture
def open_page(browser: Any, served: Site, elsewhere: list[str]) -> Iterator[Any]:
    """A function that opens a page; its runs are ended after the test."""
    contexts = []

    def opened(query: str = "", **options: object) -> Any:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(SECONDS)

        def note(request: Any) -> None:
            if not request.url.startswith((served.address, "data:", "blob:")):
                elsewhere.append(request.url)

        page.on("request", note)
        page.goto(f"{served.address}/{query}")
        page.wait_for_selector("#oes-start")
        return page

    yield opened
    for context in contexts:
        context.close()
    for run in served.queue.runs():
        served.queue.stop(run)


def fill(page: Any, *, train_steps: int, search_steps: int = 3, size: int = 32) -> None:
    """Fill in a small run."""
    page.get_by_text("More", exact=True).click()
    fields = {"size": size, "density": 0.5, "search-steps": search_steps, "train-steps": train_steps}
    for name, value in (fields | {"model-options": SMALL}).items():
        page.locator(f"#oes-{name}").locator("input, textarea").fill(str(value))


def start(page: Any, served: Site) -> None:
    """Start a run, and wait until the page shows it."""
    runs = served.queue.runs()
    page.click("#oes-start")
    says(page, "status", f"Run {runs[0].number + 1 if runs else 1}")


def says(page: Any, where: str, text: str) -> None:
    """Wait until a part of the page says something."""
    page.locator(f"#oes-{where}", has_text=text).wait_for()


def source(page: Any) -> str:
    """The picture of this step."""
    return page.locator("#oes-pictures img").first.get_attribute("src")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::oes_fast.CollapsedRunWarning")
def test_an_uploaded_picture_is_restored_as_on_the_command_line(
    open_page: Any, served: Site, elsewhere: list[str], tmp_path: Path
):
    page = open_page()
    page.locator("#oes-upload input[type=file]").set_input_files(picture_file(tmp_path / "my photo.png"))
    page.get_by_text("my photo: 40 x 32 pixels, 8 bits").wait_for()
    fill(page, train_steps=12, size=0)
    start(page, served)
    says(page, "status", "done, step 12 of 12")
    says(page, "files", "my_photo_restored_mask")
    folder = tmp_path / "page"
    folder.mkdir()
    links = page.locator("#oes-files a[download]")
    for number in range(links.count()):
        with page.expect_download() as event:
            links.nth(number).click()
        event.value.save_as(folder / event.value.suggested_filename)
    program, *arguments = shlex.split(page.locator("#oes-command textarea").input_value())
    (tmp_path / "my_photo.png").write_bytes((tmp_path / "my photo.png").read_bytes())
    assert (program, arguments[1]) == ("oes-fast", "my_photo.png")
    run_in(tmp_path, arguments)
    assert_same_run(folder / "my_photo_restored.png", tmp_path / "my_photo_restored.png")
    assert elsewhere == []


def test_a_run_is_watched_kept_paused_found_again_and_stopped(open_page: Any, served: Site):
    page = open_page()
    fill(page, train_steps=LONG)
    start(page, served)
    says(page, "status", "training")
    first = source(page)
    page.wait_for_function(
        "(before) => document.querySelector('#oes-pictures img').src !== before", arg=first
    )
    page.click("#oes-keep")
    says(page, "files", "_average")
    page.click("#oes-pause")
    says(page, "status", "paused while training")
    step = page.inner_text("#oes-status")
    page.reload()
    says(page, "status", step.splitlines()[0][:60])
    page.click("#oes-go")
    says(page, "status", "steps a second")
    page.locator("#oes-status", has_text="paused").wait_for(state="detached")
    page.click("#oes-stop")
    says(page, "status", "stopped")
    says(page, "files", "camera_restored_mask")


@pytest.mark.slow
def test_two_pages_share_the_queue(open_page: Any, served: Site):
    first, second = open_page(), open_page()
    for page in (first, second):
        fill(page, train_steps=LONG)
    start(first, served)
    start(second, served)
    says(second, "status", "waits: 1 run ahead of it")
    start(third := open_page(), served)
    says(third, "status", "waits: 2 runs ahead of it")
    third.click("#oes-stop")
    says(third, "status", "stopped")
    first.click("#oes-stop")
    says(first, "status", "stopped")
    says(second, "status", "training")
    second.click("#oes-stop")
    says(second, "status", "stopped")


def test_bad_and_huge_uploads_are_one_sentence(open_page: Any, tmp_path: Path):
    page = open_page()
    bad, huge = tmp_path / "bad.png", tmp_path / "huge.png"
    bad.write_bytes(b"no image at all")
    with huge.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    upload = page.locator("#oes-upload input[type=file]")
    upload.set_input_files(bad)
    says(page, "message", "bad.png: ")
    assert page.locator("#oes-message [role=alert]").count() == 1
    page = open_page()
    page.locator("#oes-upload input[type=file]").set_input_files(huge)
    page.get_by_text("maximum", exact=False).first.wait_for()


def test_it_fits_a_telephone_and_is_used_by_keys(open_page: Any, served: Site):
    page = open_page(viewport={"width": 360, "height": 740}, color_scheme="dark")
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= 360
    page.locator("#oes-start").focus()
    assert page.evaluate("document.activeElement.id") == "oes-start"
    fill(page, train_steps=12)
    page.locator("#oes-start").focus()
    before = len(served.queue.runs())
    page.keyboard.press("Enter")
    page.wait_for_timeout(500)
    assert len(served.queue.runs()) == before + 1
    says(page, "status", f"Run {served.queue.runs()[0].number}: done")
    assert page.locator("#oes-spoken[role=status][aria-live=polite]").count() == 1
    says(page, "spoken", "done, PSNR of the average")
    assert page.locator("#oes-pictures img").first.get_attribute("alt")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_barrier_of_ours(open_page: Any, scheme: str):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page = open_page(color_scheme=scheme)
    fill(page, train_steps=12)
    page.get_by_label("Take the layer profile of a published one").click()
    page.click("#oes-start")
    says(page, "status", "done")
    says(page, "files", "camera_restored_mask")
    # Gradio's own: the name of an empty plot, and the footer.
    gradios = {"aria-prohibited-attr", "image-redundant-alt"}
    found = {rule["id"]: rule["nodes"] for rule in axe.Axe().run(page).response["violations"]}
    assert {
        name: [each["html"] for each in nodes] for name, nodes in found.items() if name not in gradios
    } == {}


def test_tab_goes_from_the_image_to_start_to_the_run(open_page: Any):
    page = open_page()
    fill(page, train_steps=LONG)
    page.get_by_text("More", exact=True).click()
    page.click("#oes-start")
    says(page, "status", "training")
    page.locator("#oes-picture input").focus()
    order = []
    for _ in range(40):
        own = page.evaluate("document.activeElement.closest('[id^=oes-]')?.id")
        order += [own] if own and own not in order else []
        page.keyboard.press("Tab")
    wanted = [
        "oes-picture",
        "oes-task",
        "oes-size",
        "oes-start",
        "oes-which",
        "oes-pause",
        "oes-keep",
        "oes-stop",
    ]
    assert [name for name in order if name in wanted] == wanted
    page.click("#oes-stop")


def test_what_changes_is_said_when_it_happens_not_with_every_step(open_page: Any):
    page = open_page()
    fill(page, train_steps=LONG)
    page.click("#oes-start")
    says(page, "spoken", "training")
    said, step = page.inner_text("#oes-spoken"), page.inner_text("#oes-status")
    page.wait_for_timeout(5000)
    assert (page.inner_text("#oes-spoken"), page.inner_text("#oes-status") != step) == (said, True)
    page.click("#oes-pause")
    says(page, "spoken", "paused while training")
    page.click("#oes-stop")
    says(page, "spoken", "stopped")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::oes_fast.CollapsedRunWarning")
def test_what_is_painted_over_is_filled(open_page: Any, served: Site):
    optional_packages.deepinv()
    if not optional_packages.torchvision_loads():
        pytest.skip("torchvision does not load in a process of its own")
    page = open_page(viewport={"width": 1200, "height": 1200})
    fill(page, train_steps=12)
    page.get_by_label("Fill what I paint over").click()
    canvas = page.locator("#oes-painting canvas").first
    canvas.wait_for()
    page.wait_for_timeout(2000)  # until the picture lies under the brush
    box = canvas.bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 0.4 * box["width"], middle)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.6 * box["width"], middle, steps=5)
    page.mouse.up()
    page.wait_for_timeout(500)
    start(page, served)
    says(page, "status", "done, step 12 of 12")
    page.locator("#oes-command textarea").wait_for()
    assert (
        page.locator("#oes-command textarea")
        .input_value()
        .startswith("oes-fast inpaint skimage:camera --mask known.png --sigma 0.1")
    )
