import json
import re
import sys
from pathlib import Path

import pytest
import yaml
from made_scores import ABOUT, campaign, failures, table

from clipray.report import campaigns, summary, write
from clipray.store import Store
from jobs import report, run


@pytest.fixture
def job(monkeypatch, capsys):
    """Runs the job as its command line would: (exit code, last line of stdout, stderr)."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["jobs.report", *arguments])
        with pytest.raises(SystemExit) as left:
            run(report.main)
        said = capsys.readouterr()
        return left.value.code, (said.out.splitlines() or [""])[-1], said.err

    return call


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    place = tmp_path_factory.mktemp("workspace")
    write(Store(str(place)), "made", campaign(2, (1,), 2), failures(), ABOUT)
    return place


def test_a_workspace_a_config_and_a_table_give_the_same_page(job, workspace, tmp_path):
    folder = workspace / "reports" / "made"
    page = (folder / "report.html").read_text()
    settings = {
        "name": "made",
        "workspace": str(workspace),
        "datasets": ["dtd"],
        "backbones": ["rn-32"],
        "seeds": 1,
    }
    settings |= {"precision": "fp32", "heads": ["zero_shot"]}
    (tmp_path / "made.yaml").write_text(yaml.safe_dump(settings))
    for given in (workspace, tmp_path / "made.yaml", folder / "scores.parquet"):
        (folder / "report.html").unlink()
        code, line, said = job(str(given))
        assert code == 0, said
        (made,) = json.loads(line)["reports"]
        assert made["report"] == str(folder / "report.html")
        assert Path(made["report"]).read_text() == page


def test_into_another_folder(job, workspace, tmp_path):
    code, _, said = job(
        str(workspace / "reports" / "made" / "scores.parquet"), "--out", str(tmp_path / "there")
    )
    assert code == 0, said
    page = (tmp_path / "there" / "report.html").read_text()
    assert "scores.parquet" not in re.findall(r'href="([^"]*)"', page)  # it does not lie there
    assert (tmp_path / "there" / "tables" / "methods.csv").is_file()


def test_an_empty_workspace_is_told(job, tmp_path):
    code, _, said = job(str(tmp_path))
    assert code == 2
    assert "run `python -m jobs.run CONFIG` first" in said


def test_scores_of_an_older_version_are_told(job, workspace, tmp_path):
    import pyarrow.parquet as pq

    old = pq.read_table(workspace / "reports" / "made" / "scores.parquet").drop_columns(["kind"])
    pq.write_table(old, tmp_path / "scores.parquet")
    code, line, said = job(str(tmp_path / "scores.parquet"))
    assert (code, line) == (2, "")
    assert "scores.parquet has no column 'kind': an older clipray wrote it" in said
    assert "`python -m jobs.run CONFIG` writes it anew" in said


def test_campaigns_are_compared_on_what_they_share(job, workspace, tmp_path):
    rows = campaign(3, (1,), 2).to_pylist()  # a dataset more, and half a point more
    better = [r | {"value": r["value"] + 0.005 * (r["method"] == "nlc")} for r in rows]
    about = ABOUT | {"campaign": ABOUT["campaign"] | {"name": "second <b>"}}
    write(Store(str(tmp_path)), "second", table(better), failures(), about)
    code, line, said = job(str(workspace), str(tmp_path))
    assert code == 0, said
    page = Path(json.loads(line)["compared"])
    assert page == workspace / "reports" / "compared.html"
    scores = {"a": campaign(2, (1,), 2), "b": table(better)}
    assert campaigns.shared(scores) == ["dtd", "eurosat"]
    (own,) = [side for side in campaigns.sides(scores) if side.method == "nlc"]
    first = summary.per_dataset(scores["a"])
    first = first[first["method"] == "nlc"].set_index("dataset")["top1"]
    second = summary.per_dataset(scores["b"])
    second = second[second["method"] == "nlc"].set_index("dataset")["top1"][first.index]
    assert own.top1 == pytest.approx([first.mean(), second.mean()])
    assert own.differences[0] is None
    assert own.differences[1].mean == pytest.approx((second - first).mean())
    text = page.read_text()
    assert "second &lt;b&gt;" in text
    assert 'href="made/report.html"' in text


def test_campaigns_without_a_common_dataset_are_told(job, workspace, tmp_path):
    rows = [r | {"dataset": "other"} for r in campaign(1, (1,), 2).to_pylist()]
    write(Store(str(tmp_path)), "second", table(rows), failures(), ABOUT)
    code, line, _ = job(str(workspace), str(tmp_path), "--out", str(tmp_path / "out"))
    assert code == 0
    assert "nothing can be compared" in Path(json.loads(line)["compared"]).read_text()
