"""What counts as worse than the last campaign: hand-made outcomes, whose changes are known."""

import http.server
import json
import threading

import numpy as np
import pyarrow as pa
import pytest

from clipray import schema
from clipray.artefacts import history
from clipray.config import Regression
from clipray.steps.publish import regressions
from clipray.store import Store

FOLDER = "reports/nightly"
IDS = [f"{number:03d}" for number in range(200)]


def results(store: Store, place: str, right: dict[str, np.ndarray], dataset="made") -> pa.Table:
    """Write outcomes of methods on one dataset, and return their scores."""
    rows, scores = [], []
    for method, good in right.items():
        where = {"dataset": dataset, "head": "zero_shot", "method": method, "shots": 4, "seed": 0}
        for image, value in zip(IDS, good, strict=True):
            one = {"image_id": image, "label": 1, "prediction": int(value), "confidence": 0.5}
            rows.append(where | one)
        kind = "single" if method.startswith("single/") else "fuser"
        more = {"split": "test", "perturbation": "none", "severity": 0, "kind": kind}
        value = {"metric": "top1", "value": float(good.mean()), "n_scored": 200, "n_expected": 200}
        scores.append(where | more | value)
    store.write_table(f"{place}/outcomes.parquet", pa.Table.from_pylist(rows, schema.OUTCOMES))
    return pa.Table.from_pylist(scores, schema.SCORES)


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path))


def first(count: int) -> np.ndarray:
    return np.arange(200) < count


def verdicts(store, before, after, rule=None, good=True):
    old = results(store, "evaluations/made-1", before)
    history.write(store, FOLDER, old, {"made": "evaluations/made-1"}, good=good, commit="c")
    new = results(store, "evaluations/made-2", after)
    _, changes = regressions.since_last(
        store, FOLDER, new, {"made": "evaluations/made-2"}, rule or Regression()
    )
    return {change.method: change for change in changes}


def test_a_clear_loss_is_worse_and_a_clear_gain_better(store):
    found = verdicts(
        store,
        {"nlc": first(150), "guarded": first(150), "log_avg": first(150)},
        {"nlc": first(120), "guarded": first(180), "log_avg": first(149)},
    )
    assert {name: change.verdict for name, change in found.items()} == {
        "nlc": "worse",
        "guarded": "better",
        "log_avg": "same",
    }
    assert found["nlc"].low <= -0.15 <= found["nlc"].high < 0


def test_a_loss_within_its_interval_is_none(store):
    """Thirteen lost and ten won of two hundred: McNemar's test would not see it either."""
    after = first(150)
    after[:13] = False
    after[150:160] = True
    assert verdicts(store, {"nlc": first(150)}, {"nlc": after})["nlc"].verdict == "same"


def test_new_and_gone_methods_are_told_and_a_filter_keeps_to_its_methods(store):
    before, after = {"nlc": first(150), "old": first(9)}, {"nlc": first(10), "new": first(9)}
    found = verdicts(store, before, after)
    assert (found["old"].verdict, found["new"].verdict) == ("gone", "new")
    found = verdicts(store, before, after, Regression(methods=("new",)))
    assert list(found) == ["new"]


def test_only_a_good_campaign_is_compared_with_and_a_worse_one_can_be_accepted(store):
    assert verdicts(store, {"nlc": first(150)}, {"nlc": first(9)}, good=False) == {}
    assert history.last_good(store, FOLDER) is None
    history.accept_last(store, FOLDER)
    assert history.last_good(store, FOLDER).outcomes == {"made": "evaluations/made-1"}


def test_an_unchanged_evaluation_is_not_read_again(store):
    scores = results(store, "evaluations/made-1", {"nlc": first(150)})
    places = {"made": "evaluations/made-1"}
    history.write(store, FOLDER, scores, places, good=True, commit=None)
    store.fs.rm(f"{store.root}/evaluations", recursive=True)
    _, (change,) = regressions.since_last(store, FOLDER, scores, places, Regression())
    assert change.verdict == "same"


def test_outcomes_that_are_gone_leave_a_change_without_interval(store):
    old = results(store, "evaluations/made-1", {"nlc": first(150)})
    history.write(store, FOLDER, old, {"made": "evaluations/made-1"}, good=True, commit=None)
    store.fs.rm(f"{store.root}/evaluations", recursive=True)
    new = results(store, "evaluations/made-2", {"nlc": first(100)})
    _, (change,) = regressions.since_last(
        store, FOLDER, new, {"made": "evaluations/made-2"}, Regression()
    )
    assert (change.verdict, change.low) == ("worse", None)


def test_the_summary_names_the_worst_first(store):
    right = {name: first(150) for name in "abc"}
    found = verdicts(store, right, {"a": first(120), "b": first(60), "c": first(150)})
    entry = history.last_good(store, FOLDER)
    text = regressions.markdown("nightly", entry, list(found.values()))
    assert text.startswith("**nightly** against")
    assert "2 worse, 0 better" in text
    assert text.index("b@4") < text.index("a@4")
    assert "0.750 → 0.300 (-0.450" in text


def test_a_webhook_gets_the_message_and_one_that_is_down_costs_nothing(capsys):
    got = []

    class Hook(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *words):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Hook) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/"
        regressions.notify(url, {"name": "nightly"})
    assert got == [{"name": "nightly"}]
    regressions.notify(url, {"name": "nightly"})
    assert "did not take the message" in capsys.readouterr().err
