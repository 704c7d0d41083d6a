"""The report as a reader sees it, in a headless Chromium without a network."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from tests.browser.conftest import CHROMIUM
from tests.conftest import run_cli
from tests.reporting.folders import make_run

SIZE = {"width": 1200, "height": 900}


def grid() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 32), (200, 30, 30)).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, trained: Path) -> Path:
    """A page with two sections: fronts, geometry, a grid."""
    folder = tmp_path_factory.mktemp("report")
    shutil.copytree(trained, folder / "trained")
    dense = folder / "dense"
    assert run_cli("train", "digits_dense", "train.steps=4", "eval.every=4", "--quiet", "--out", dense).code == 0
    for seed, fid in enumerate((9.0, 11.0)):
        made = {"samples": {"fid": fid, "recall": 0.4}, "grid": grid()}
        make_run(folder / f"lora-{seed}", "digits_unet_lora", f"seed={seed}", params=1000, **made)
        make_run(folder / f"2d-{seed}", "digits_unet_2d", f"seed={seed}", params=90, **made)
    assert run_cli("report", folder, "--against", dense).code == 0
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def page(report: Path, browser: Browser) -> Iterator[Page]:
    """The page, opened offline; whatever it complains of or asks for fails the test."""
    complaints, requests = [], []
    context = browser.new_context(viewport=SIZE, offline=True)  # type: ignore[arg-type]
    opened = context.new_page()
    opened.on("console", lambda message: complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("request", lambda request: requests.append(request.url))
    opened.goto(report.as_uri())
    yield opened
    assert complaints == []
    assert [url for url in requests if not url.startswith("data:")] == [report.as_uri()]
    context.close()


def column(page: Page, table: int, number: int) -> list[str]:
    cells = page.locator("table").nth(table).locator(f"tbody tr td:nth-child({number})").all()
    return [cell.get_attribute("data-value") or "" for cell in cells]


def test_every_picture_can_be_seen(page: Page) -> None:
    figures = page.locator("figure").all()
    assert len(figures) == 2 + 1 + 2 + 3 + 1 + 2  # metrics and learning curves of both tasks, geometry, grids
    for figure in figures:
        box = figure.locator("svg, img").bounding_box()
        assert box is not None
        assert box["width"] > 200
        assert box["height"] > 50
    points = page.locator('g[id*="row-"]').all()
    assert len(points) == 2 * 2 + 3 * 2
    for point in points:
        box = point.bounding_box()
        assert box is not None
        assert box["width"] > 0
    assert "LoRA, rank" in (page.locator('g[id*="row-"] title').last.text_content() or "")


def test_generated_images_are_shown(page: Page) -> None:
    sizes = page.eval_on_selector_all("img", "images => images.map(image => [image.complete, image.naturalWidth])")
    assert sizes == [[True, 64], [True, 64]]


def test_a_click_sorts_a_table(page: Page) -> None:
    heads = page.locator("table").first.locator("thead button").all_text_contents()
    params = heads.index("parameters") + 1
    assert column(page, 0, params) == ["90", "49152"]
    button = page.locator("table").first.locator("thead button").nth(params - 1)
    button.click()
    assert column(page, 0, params) == ["90", "49152"]
    button.click()
    assert column(page, 0, params) == ["49152", "90"]
    assert button.locator("..").get_attribute("aria-sort") == "descending"
    page.locator("table").first.locator("thead button").first.click()
    assert column(page, 0, 1) == sorted(column(page, 0, 1), key=str.lower)
    assert page.locator("table").first.locator("th[aria-sort]").count() == 1


def test_rows_without_a_number_stay_last(page: Page) -> None:
    table = page.locator("table").first
    heads = table.locator("thead button").all_text_contents()
    number = heads.index("d_L") + 1
    for _ in range(2):  # the dense run is not compared with itself
        table.locator("thead button").nth(number - 1).click()
        assert column(page, 0, number)[-1] == ""


def test_light_and_dark_differ_and_both_can_be_read(page: Page) -> None:
    def colours() -> tuple[str, str, str]:
        found = page.evaluate(
            """() => {
              const body = getComputedStyle(document.body);
              const text = document.querySelector('figure svg [id*="text_"] path, figure svg [id*="text_"] use');
              return [body.backgroundColor, body.color, getComputedStyle(text).fill];
            }"""
        )
        return tuple(found)  # type: ignore[return-value]

    page.emulate_media(color_scheme="light")
    light = colours()
    page.emulate_media(color_scheme="dark")
    dark = colours()
    assert light[0] == "rgb(255, 255, 255)"
    assert dark[0] != light[0]
    assert dark[1] != light[1]
    assert (light[2], dark[2]) == (light[1], dark[1])  # the plots' text has the page's colour


def test_a_narrow_window_scrolls_its_tables_only(page: Page) -> None:
    page.set_viewport_size({"width": 420, "height": 800})
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0
