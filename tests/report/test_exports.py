"""Tables and figures beside the page are read back by other programs than the one that wrote them."""

import io
import re
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest
from made_scores import ABOUT, campaign, failures, row, table
from PIL import Image

from clipray.report import exports, summary, write
from clipray.report.canvas import ON_WHITE
from clipray.store import Store


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("workspace")
    odd = row("100%_&_{more}", "single/rn-48", 0, 0, "top1", 0.5)
    scores = table([*campaign(3, (1, 4), 2).to_pylist(), odd])
    made = write(Store(str(place)), "c", scores, failures(), ABOUT)
    return Path(made["report"]).parent, scores


def test_every_table_has_the_scores_in_three_formats(folder):
    place, scores = folder
    rows = summary.leaderboard(scores)
    read = pd.read_csv(place / "tables" / "methods.csv")
    assert read["top-1, %"].tolist() == pytest.approx([100 * one.top1 for one in rows])
    assert read["method"].tolist() == [one.method for one in rows]
    for file in (place / "tables").glob("*.csv"):
        frame = pd.read_csv(file)
        markdown = file.with_suffix(".md").read_text().splitlines()
        assert len(markdown) == len(frame) + 2
        latex = file.with_suffix(".tex").read_text()
        body = latex[latex.index("midrule") : latex.index("bottomrule")]
        assert body.count(r"\\") == len(frame)
        assert latex.count(" & ") == (len(frame) + 1) * (len(frame.columns) - 1)


def test_latex_escapes_what_is_special_there(folder):
    latex = (folder[0] / "tables" / "datasets.tex").read_text()
    assert r"100\%\_\&\_\{more\}" in latex


def test_every_figure_is_an_svg_and_a_png_in_real_colours(folder):
    drawn = sorted((folder[0] / "figures").glob("*.svg"))
    assert len(drawn) >= 6
    for file in drawn:
        text = file.read_text()
        assert ElementTree.fromstring(text).tag.endswith("svg")
        assert "var(" not in text
        assert not [one for one in ON_WHITE if one in text]
        picture = Image.open(io.BytesIO(file.with_suffix(".png").read_bytes())).convert("RGB")
        colours = {f"#{r:02x}{g:02x}{b:02x}" for _, (r, g, b) in picture.getcolors(10**7)}
        assert "#ffffff" in colours
        assert not colours & set(ON_WHITE)
        if file.stem in ("gains", "shots", "headroom"):
            assert colours & set(list(ON_WHITE.values())[4:])


def test_the_page_links_to_what_is_there(folder):
    page = (folder[0] / "report.html").read_text()
    links = {one for one in re.findall(r'href="([^"#]+)"', page) if not one.startswith("data:")}
    assert len(links) > 25
    assert [one for one in links if not (folder[0] / one).is_file()] == []
    names = {"scores.parquet", "config.yaml", "tables/methods.tex", "figures/gains.svg"}
    assert names <= links


def test_a_name_with_a_bar_stays_one_cell_of_markdown():
    frame = pd.DataFrame({"method": ["a|b"]})
    assert r"| a\|b |" in exports.formatted(frame, "md")
