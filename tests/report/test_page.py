"""The page is read with the standard library's parsers; what it says is compared with the scores."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pyarrow as pa
import pytest
from made_scores import ABOUT, BACKBONES, campaign, failures, row, table

from clipray import schema
from clipray.report import files, read, render, write
from clipray.store import Store

VOID = {"meta", "link", "br", "input", "img", "hr", "wbr"}


class Reader(HTMLParser):
    """Text, ids, addresses; and that every element is closed in order."""

    def __init__(self, page: str):
        super().__init__()
        self.open, self.text, self.ids, self.links, self.svgs = [], [], [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        self.ids += [given["id"]] if "id" in given else []
        self.links += [
            v for k, v in attrs if k in ("src", "href", "xlink:href", "action", "data", "srcset")
        ]
        self.svgs += [given] if tag == "svg" else []

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text.append(data)


def without_links(page: str) -> str:
    """The words of a page, without those on files beside it."""
    bare = re.sub(r'<h2>Files</h2>\n<ul class="files">.*?</ul>', "", page, flags=re.DOTALL)
    bare = re.sub(r'<p class="files">.*?</p>', "", bare).replace(", which lie beside this page", "")
    return " ".join(" ".join(Reader(bare).text).split())


@pytest.fixture(scope="module")
def page():
    return render(campaign(), failures(), ABOUT)


def test_names_alike_have_a_column_where_there_are_any(page):
    assert "names alike" not in page
    alike = row("dtd", "single/rn-48", 0, 0, "alike_names", 0.375, head="embeddings")
    text = " ".join(Reader(render(table([*campaign().to_pylist(), alike]), failures(), ABOUT)).text)
    assert "names alike, %" in text
    assert re.search(r"dtd\s.*?37\.5", text, re.S)


def test_short_classes_have_a_column_where_there_are_any(page):
    assert "short classes" not in page
    short = row("dtd", "set", 16, 0, "short_classes", 12.0, head="embeddings", n_scored=497)
    text = " ".join(Reader(render(table([*campaign().to_pylist(), short]), failures(), ABOUT)).text)
    assert "most: 12 classes of dtd at 16 shots" in text
    assert "fewer than 16" in text
    assert re.search(r"dtd\s+497\s+of 500\s+12\s", text)


def test_well_formed_and_self_contained(page):
    reader = Reader(page)
    assert reader.open == []
    assert len(reader.ids) == len(set(reader.ids))
    assert all(link.startswith(("#", "data:")) for link in reader.links)
    urls = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+", page))
    assert urls <= {"http://www.w3.org"}  # SVG's namespace
    assert not re.findall(r"@import|url\((?!#)", page)


def test_every_chart_is_valid_xml_with_words(page):
    svgs = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(svgs) == 8  # gains, shots, headroom, weights, four pair measures
    for svg in svgs:
        root = ElementTree.fromstring(svg)
        assert root.get("role") == "img"
        assert len(root.get("aria-label")) > 40
        ids = {node.get("id") for node in root.iter()}
        assert set(re.findall(r"url\(#([^)]+)\)", svg)) <= ids
        assert "#0000" not in svg  # every colour is the page's


def test_it_says_what_there_is(page):
    text = " ".join(" ".join(Reader(page).text).split())
    assert "Fusing 5 backbones with nlc at 16 labelled images per class gains" in text
    assert all(name in text for name in BACKBONES)
    assert "497 of 500" in text
    assert "3 images could not be read, decoded or embedded" in text
    assert "precision: fp32" in text
    assert "0123abc" in text


def test_what_failed_as_a_whole_is_listed_apart_from_images():
    wholes = [
        {
            "dataset": "svhn",
            "split": "test",
            "step": "read",
            "error": "9 of 10 images cannot be read",
        },
        {"backbone": "rn-48", "step": "load", "error": "it cannot be loaded: <no> weights"},
        {"dataset": "dtd", "backbone": "rn-32", "step": "text", "error": "not finite"},
    ]
    both = pa.concat_tables([failures(), pa.Table.from_pylist(wholes, schema=schema.FAILURES)])
    whole = pa.Table.from_pylist(wholes, schema=schema.FAILURES)
    for table_of in (both, whole):
        reader = Reader(render(campaign(2), table_of, ABOUT))
        text = " ".join("".join(reader.text).split())
        assert reader.open == []
        assert "Left out as a whole: 3 times" in text
        assert "every datasetrn-48loadit cannot be loaded: <no> weights" in text
        assert "dtdrn-32textnot finite" in text
        assert "svhntestallread9 of 10 images cannot be read" in text
        assert ("3 images could not be read" in text) == (table_of is both)
        assert "Nothing: every image" not in text


def test_numbers_without_end_leave_the_data_of_the_filters_readable():
    made = campaign(3)
    names = made["dataset"].unique().to_pylist()
    endless = [row(name, "log_avg", 0, 0, "nll", float("inf")) for name in names]
    scores = pa.concat_tables([made, table(endless)])
    text = re.search(r'id="live">(.*?)</script>', render(scores, failures(), ABOUT), re.DOTALL)[1]

    def refuse(word: str) -> None:
        raise ValueError(f"a browser knows no {word}")

    assert json.loads(text, parse_constant=refuse)["rows"]


def test_file_names_cannot_break_it(page):
    assert "zigzag/&lt;b&gt;&amp;.jpg" in page
    assert "zigzag/<b>" not in page


def test_equal_scores_give_equal_bytes(page):
    assert render(campaign(), failures(), ABOUT) == page


@pytest.mark.parametrize("datasets", [1, 2])
@pytest.mark.parametrize("shots", [(), (1,)])
def test_small_campaigns(datasets, shots):
    assert "Nothing: every image was read" in render(
        campaign(datasets, shots, 1), failures().slice(0, 0), {}
    )


def test_one_backbone_alone():
    rows = [
        row("a", "single/x", 0, 0, "top1", 0.5),
        row("a", "best_single_on_test", 0, 0, "top1", 0.5),
    ]
    assert Reader(render(table(rows), failures(), {})).open == []


def test_several_heads():
    other = [r | {"head": "linear_probe"} for r in campaign(2).to_pylist()]
    text = " ".join(Reader(render(table(campaign(2).to_pylist() + other), failures(), {})).text)
    assert "head linear_probe" in text


def test_controls_have_a_group_of_their_own():
    rows = [
        r | {"kind": "control"} if r["method"] == "c_log_avg" else r
        for r in campaign(2).to_pylist()
    ]
    page = render(table(rows), failures(), ABOUT)
    text = " ".join("".join(Reader(page).text).split())
    fused = text.index("Fused: what one can use")
    control = text.index("Controls: few-shot classifiers on all embeddings")
    assert fused < control < text.index("c_log_avg", control) < text.index("Reference", control)
    assert "c_log_avg" not in text[fused:control]


def test_written_and_read_back(tmp_path):
    store = Store(str(tmp_path))
    made = write(store, "first", campaign(2), failures(), ABOUT)
    page = Path(made["report"]).read_text()
    assert without_links(page) == without_links(render(campaign(2), failures(), ABOUT))
    assert files.campaigns(store) == ["first"]
    scores, failed, about, standings = read(store, "reports/first")
    assert scores.equals(campaign(2))
    assert failed.equals(failures())
    assert about == ABOUT
    assert standings.num_rows == 0


def test_ranks_and_the_correlation_are_shown(tmp_path):
    stand = {
        "head": "zero_shot",
        "shots": 16,
        "method": "nlc",
        "datasets": 21,
        "methods": 9,
        "mean_rank": 1.75,
    }
    stand |= {"friedman_p": 0.0012, "critical_difference": 2.6}
    stand |= {"correlation": -0.42, "correlation_low": -0.7, "correlation_high": 0.11}
    standings = pa.Table.from_pylist([stand], schema=schema.STANDINGS)
    made = write(Store(str(tmp_path)), "first", campaign(), failures(), ABOUT, standings)
    reader = Reader(Path(made["report"]).read_text())
    text = " ".join("".join(reader.text).split())
    assert reader.open == []
    assert "1.8" in text
    assert "9 methods on 21 datasets, Friedman’s p = 0.001, and ranks 2.6 apart differ" in text
    (label,) = [
        svg["aria-label"]
        for svg in reader.svgs
        if "against complementarity on 21" in svg["aria-label"]
    ]
    assert "−0.42 [−0.70, +0.11]" in label
    assert read(Store(str(tmp_path)), "reports/first")[3].equals(standings)
    few = pa.Table.from_pylist([stand | {"datasets": 6}], schema=schema.STANDINGS)
    reader = Reader(render(campaign(6), failures(), ABOUT, few))
    text = " ".join("".join(reader.text).split())
    assert "−0.42 [−0.70, +0.11]. 6 datasets are few" in text
    assert not [svg for svg in reader.svgs if "against complementarity" in svg["aria-label"]]


def test_datasets_that_a_backbone_has_seen_are_marked():
    scores, failed = campaign(3), failures()
    assert "seen by" not in render(scores, failed, ABOUT)
    page = render(scores, failed, ABOUT | {"seen": {"dtd": ["rn-48"], "eurosat": []}})
    assert "seen by" in page
    assert page.count("<td>rn-48</td>") >= 1
