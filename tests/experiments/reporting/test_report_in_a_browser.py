"""The report of a real study, opened in Chromium: what no parser of HTML can see."""

import shutil
from dataclasses import replace

import pytest

from backpass.experiments import RECIPES, compare, write_report
from backpass.experiments.settings import replace_settings
from backpass.training.recipe import Runtime

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
EPOCHS = 3
SETTINGS = [("epochs", EPOCHS), ("data.limit_train", 96), ("data.limit_test", 60), ("sgs.warmup", 1), ("sgs.every", 1)]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="expected chromium, chromium-browser or google-chrome, found none"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the report of a study of 3 epochs, whose scalings differ from epoch to epoch."""
    folder = tmp_path_factory.mktemp("study")
    recipe = replace_settings(RECIPES["digits"], SETTINGS)
    found = compare(
        recipe, folder, methods=["plain", "sgs"], seeds=[0, 1], tune=["lr=0.01,0.05"], runtime=Runtime(device="cpu")
    )

    entries = tuple(replace(entry, label=f"{entry.label} with a long label" * 8) for entry in found.study.entries)
    write_report(replace(found.study, entries=entries), found.records, folder, found.choices)
    return folder


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, folder):
    """Opens the report; ``events`` has its errors, warnings and requests."""
    pages = []

    def open_it(**options):
        page = browser.new_page(**options)
        pages.append(page)
        page.events = []
        page.on("console", lambda message: page.events.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: page.events.append(f"error: {error}"))
        page.on("request", lambda request: page.events.append(f"request: {request.url}"))
        page.goto((folder / "report.html").as_uri())
        page.wait_for_function("document.documentElement.dataset.ready === 'yes'")
        return page

    yield open_it
    for page in pages:
        page.close()


def test_no_error_and_no_request(open_page, folder):
    page = open_page()
    assert page.events == [f"request: {(folder / 'report.html').as_uri()}"]
    page.evaluate("fetch('https://example.org/').catch(() => 0)")
    assert any("Content Security Policy" in event for event in page.events)  # what would load is refused, and seen


def test_curves_have_one_point_an_epoch(open_page):
    page = open_page()
    points = page.locator("#curves svg .mark-symbol.role-mark path")
    assert points.count() == 2 * EPOCHS
    page.select_option("#curves select", label="loss")
    page.wait_for_timeout(200)
    assert points.count() == 2 * EPOCHS


def test_tables_sort_by_number_up_and_down_with_the_keyboard(open_page):
    page = open_page()
    head = page.locator("#table th", has_text="seconds")
    column = page.locator("#table th").all_inner_texts().index("seconds")
    cells = page.locator(f"#table tbody tr td:nth-child({column + 1})")
    head.locator("button").focus()
    for direction, reverse in (("ascending", False), ("descending", True)):
        page.keyboard.press("Enter")
        assert head.get_attribute("aria-sort") == direction
        values = [float(text) for text in cells.all_inner_texts()]
        assert values == sorted(values, reverse=reverse)
        assert len(values) == 2


def test_the_slider_shows_the_scalings_of_each_epoch(open_page):
    page = open_page()
    slider, cells = page.locator("#scalings-epoch"), page.locator("#scalings-layers td")
    last = cells.all_inner_texts()
    assert page.locator("#scalings-shown").inner_text() == "3 of 1, 2, 3"
    slider.focus()
    page.keyboard.press("Home")
    assert page.locator("#scalings-shown").inner_text() == "1 of 1, 2, 3"
    assert set(cells.all_inner_texts()) == {"1.00"}  # before the first measurement
    page.keyboard.press("End")
    assert cells.all_inner_texts() == last != ["1.00"] * len(last)
    assert len(last) == 9 * page.locator("#scalings-layers figure").count()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_it_fits_the_screen_and_follows_its_colours(scheme, width, open_page):
    page = open_page(color_scheme=scheme, viewport={"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    background, ink = page.evaluate(
        "[document.body, document.querySelector('#curves svg text')].map((element, n) =>"
        " getComputedStyle(element)[n ? 'fill' : 'backgroundColor'].match(/[0-9]+/g).slice(0, 3).map(Number))"
    )
    assert (sum(background) > sum(ink)) == (scheme == "light")
    assert abs(sum(background) - sum(ink)) > 450
    widths = page.evaluate(
        "[...document.querySelectorAll('.chart svg')].map((svg) => svg.getBoundingClientRect().width)"
    )
    assert all(width / 3 < found <= width for found in widths)
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
