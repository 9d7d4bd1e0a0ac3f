"""The page in a browser, as people see it: Chromium of the system, driven by playwright; axe-core judges access."""

import re
import shutil
from pathlib import Path

import pytest
from made_scores import ABOUT, campaign, failures, large, looked_at

from clipray.report import gains, render, summary

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("no Chromium on this machine: apt install chromium", allow_module_level=True)

LIMIT = 8_000_000  # bytes of a page
SECONDS = 2.0  # of the browser's main thread until a page of a large campaign can be used
VISIBLE = "(one) => one.checkVisibility()"
WORDS = {"nlc": "A gate that weighs backbones by image.", "log_avg": "A product of experts."}


@pytest.fixture(scope="module")
def browser():
    with api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Name → a page on disk."""
    folder = tmp_path_factory.mktemp("pages")
    about = ABOUT | {"methods": WORDS}
    made = {
        "small": render(campaign(4, (1, 4), 2), failures(), about, looked_at=looked_at(4)),
        "large": render(large(), failures(), about, looked_at=looked_at(30)),
    }
    for name, html in made.items():
        (folder / f"{name}.html").write_text(html)
    return {name: folder / f"{name}.html" for name in made}


@pytest.fixture
def open_page(browser, pages):
    """Opens a page, and fails where it wrote an error to the console or asked for anything else."""
    told, opened = [], []

    def call(name: str, width: int = 1440, scheme: str = "light") -> "api.Page":
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, has_touch=width < 500
        )
        opened.append(context)
        page = context.new_page()
        page.on("console", lambda m: told.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("request", lambda r: told.append(r.url) if r.url != page_of(name) else None)
        page.goto(page_of(name))
        return page

    def page_of(name: str) -> str:
        return Path(pages[name]).as_uri()

    yield call
    for context in opened:
        context.close()
    assert [text for text in told if not text.startswith("data:")] == []


def shown(page, selector: str) -> list[str]:
    """Texts of what can be seen."""
    return page.locator(selector).evaluate_all(
        f"(all) => all.filter({VISIBLE}).map((x) => x.innerText)"
    )


@pytest.mark.parametrize("name", ["small", "large"])
@pytest.mark.parametrize("width", [390, 1440])
def test_nothing_is_wider_than_the_screen(open_page, name, width):
    page = open_page(name, width)
    assert page.evaluate("document.documentElement.scrollWidth") == width


@pytest.mark.parametrize("name", ["small", "large"])
def test_nothing_is_wider_than_a_printed_page(open_page, name):
    page = open_page(name, 720)  # A4 less its margins
    page.emulate_media(media="print")
    assert page.evaluate("document.documentElement.scrollWidth") == 720


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_axe_finds_nothing(open_page, width, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe-core")
    page = open_page("small", width, scheme)
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    found = axe.Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_every_tab_stop_has_a_name(open_page):
    page = open_page("small")
    session = page.context.new_cdp_session(page)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    stops = [node for node in nodes if _focusable(node) and node["role"]["value"] != "RootWebArea"]
    assert len(stops) > 40
    assert [node for node in stops if not node["name"]["value"].strip()] == []


def _focusable(node: dict) -> bool:
    properties = {one["name"]: one["value"].get("value") for one in node.get("properties", [])}
    return not node.get("ignored") and bool(properties.get("focusable"))


def test_sorting_by_keyboard(open_page):
    page = open_page("small")
    head = page.locator("#every-row th", has_text="top-1, %").first
    head.locator("button").focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    column = head.evaluate("(one) => one.cellIndex")
    cells = f"#every-row tbody tr td:nth-child({column + 1})"
    values = [float(text.split()[0]) for text in shown(page, cells)]
    assert len(values) > 10
    assert values == sorted(values, reverse=True)
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    values = [float(text.split()[0]) for text in shown(page, cells)]
    assert values == sorted(values)


def test_filters_work_together(open_page):
    page = open_page("large")
    page.locator("#filters select[name=head]").select_option("zero_shot")
    page.locator("#filters select[name=shots]").select_option("4")
    page.locator("#filters input[name=method]").fill("method_07")
    rows = page.locator("#every-row tbody tr").evaluate_all(
        f"(all) => all.filter({VISIBLE}).map((x) => [x.dataset.head, x.dataset.shots, x.dataset.method])"
    )
    wanted = [["zero_shot", "4", name] for name in ("alone/method_07", "method_07")]
    assert sorted(rows) == wanted
    page.locator(".pick", has_text="Kinds").locator("summary").click()
    page.locator("#filters input[value=alone]").uncheck()
    assert len(shown(page, "#every-row tbody tr")) == 1
    assert re.match(r"1 of \d+ rows", page.locator("#told").inner_text())
    assert shown(page, "#board tr.line th") == ["method_07"]
    page.locator("#filters button[type=reset]").click()
    page.wait_for_timeout(100)
    assert len(shown(page, "#every-row tbody tr")) > 100


def test_means_are_over_the_chosen_datasets(open_page):
    scores = campaign(4, (1, 4), 2)
    page = open_page("small")
    before = page.locator("#board").inner_text()
    page.locator(".pick", has_text="Datasets").locator("summary").click()
    page.locator("#filters button[data-tick=none]").click()
    for dataset in ("dtd", "food101"):
        page.locator(f"#filters input[value={dataset}]").check()
    table = summary.per_dataset(scores)
    own = table[(table["method"] == "nlc") & (table["shots"] == 4)].set_index("dataset")
    own = own.loc[["dtd", "food101"]]
    cell = page.locator('#board tr[data-method=nlc] td[data-shots="4"]').inner_text()
    assert cell.split()[0] == summary.percent(own["top1"].mean())
    assert cell.split()[1] == gains.points(own["on_support"].mean())
    listed = page.locator("tr[data-dataset]")
    seen = {row.get_attribute("data-dataset") for row in listed.all() if row.is_visible()}
    assert seen == {"dtd", "food101"}
    page.locator("#filters button[data-tick=all]").click()
    assert page.locator("#board").inner_text() == before


def test_a_method_says_what_it_is_by_keyboard_and_by_touch(open_page):
    page = open_page("small")
    page.locator("#board tr[data-method=nlc] button.name").focus()
    page.keyboard.press("Enter")
    assert WORDS["nlc"] in "".join(shown(page, ".about"))
    page.keyboard.press("Escape")
    assert shown(page, ".about") == []
    page = open_page("small", 390)
    page.locator("#board tr[data-method=log_avg] button.name").tap()
    assert WORDS["log_avg"] in "".join(shown(page, ".about"))


def test_many_methods_start_with_a_few(open_page):
    page = open_page("large")
    lines = "#board tbody[data-kind=fuser][data-head=zero_shot] tr.line"
    few = shown(page, lines)
    assert 4 <= len(few) <= 8
    assert any("method_39" in line for line in few)  # the best by construction
    more = page.locator("#board tbody[data-kind=fuser][data-head=zero_shot] button.more")
    more.click()
    assert more.get_attribute("aria-expanded") == "true"
    assert len(shown(page, lines)) > 40


def test_one_dataset_is_shown_at_a_time(open_page):
    page = open_page("small")
    assert shown(page, "article.panel h3:not(.kind)") == ["set-00: how far to trust a confidence"]
    page.locator("select[data-panels]").select_option("2")
    assert shown(page, "article.panel h3:not(.kind)") == ["set-02: how far to trust a confidence"]


def test_a_large_campaign_opens_soon(browser, pages):
    assert pages["large"].stat().st_size <= LIMIT
    page = browser.new_page()
    session = page.context.new_cdp_session(page)
    session.send(
        "Performance.enable", {"timeDomain": "threadTicks"}
    )  # other processes do not count
    page.goto(pages["large"].as_uri())
    page.locator("#told").wait_for()
    metrics = session.send("Performance.getMetrics")["metrics"]
    page.close()
    (seconds,) = [one["value"] for one in metrics if one["name"] == "TaskDuration"]
    assert 0 < seconds <= SECONDS
