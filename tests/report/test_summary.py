import random

import numpy as np
import pyarrow as pa
import pytest
from made_scores import campaign, row, table
from scipy import stats

from clipray import schema
from clipray.report import gains, headline, leaderboard, markdown, summary
from clipray.report.tables import console_table


def two_datasets():
    """Two datasets, two seeds: small enough to check by hand."""
    rows = []
    for dataset, best, support, fused in (
        ("a", 0.50, (0.40, 0.50), (0.60, 0.62)),
        ("b", 0.80, (0.80, 0.80), (0.7, 0.8)),
    ):
        rows += [
            row(dataset, "single/x", 0, 0, "top1", best),
            row(dataset, "single/y", 0, 0, "top1", 0.1),
        ]
        rows += [
            row(dataset, "best_single_on_test", 0, 0, "top1", best),
            row(dataset, "oracle", 0, 0, "top1", 0.9),
        ]
        rows += [row(dataset, "log_avg", 0, 0, "top1", best)]
        for seed in (0, 1):
            rows.append(row(dataset, "best_single_on_support", 1, seed, "top1", support[seed]))
            rows.append(row(dataset, "nlc", 1, seed, "top1", fused[seed]))
    return table(rows)


def find(rows, method, shots):
    (found,) = [row for row in rows if (row.method, row.shots) == (method, shots)]
    return found


def test_gains_by_hand():
    nlc = find(leaderboard(two_datasets()), "nlc", 1)
    assert nlc.top1 == pytest.approx((0.61 + 0.75) / 2)
    assert nlc.on_support.mean == pytest.approx((0.16 - 0.05) / 2)
    assert nlc.on_test.mean == pytest.approx((0.11 - 0.05) / 2)
    assert (nlc.on_support.wins, nlc.on_support.ties, nlc.on_support.losses) == (1, 0, 1)
    assert (nlc.datasets, nlc.seeds, nlc.kind) == (2, 2, "fuser")
    assert nlc.top1_std == pytest.approx(np.std([0.65, 0.71], ddof=1))


def test_without_labels_only_the_hindsight_reference_compares():
    log_avg = find(leaderboard(two_datasets()), "log_avg", 0)
    assert log_avg.on_support is None
    assert log_avg.on_test[3:] == (0, 2, 0)


def test_interval_is_scipys():
    scores = campaign()
    table = summary.per_dataset(scores)
    differences = table[(table["method"] == "nlc") & (table["shots"] == 4)]["on_support"]
    expected = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    found = find(leaderboard(scores), "nlc", 4).on_support
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_one_dataset_has_no_interval():
    assert find(leaderboard(campaign(1)), "nlc", 16).on_support.low is None


def test_perturbed_images_are_left_out():
    noisy = row("a", "nlc", 1, 0, "top1", 0.0, perturbation="blur", severity=3)
    rows = two_datasets().to_pylist()
    assert leaderboard(table([*rows, noisy])) == leaderboard(table(rows))


def test_order_of_rows_changes_nothing():
    scores = campaign(3)
    shuffled = scores.take(np.random.default_rng(0).permutation(len(scores)))
    assert [r[:5] for r in leaderboard(shuffled)] == [r[:5] for r in leaderboard(scores)]


def test_headline_in_words_and_numbers():
    found = headline(two_datasets())
    assert found["text"][0] == (
        "Fusing 2 backbones with nlc at 1 labelled image per class gains +5.5 points [−127.9, +138.9] (only 2 "
        "datasets) of top-1 accuracy over the best single zero-shot backbone (picked with the same labels) on average "
        "over 2 datasets, and is better on 1 of them."
    )
    assert (found["method"], found["shots"], found["wins"], found["datasets"]) == ("nlc", 1, 1, 2)
    assert found["gain"] == pytest.approx(0.055)
    assert found["oracle_gain"] == pytest.approx(0.25)


def test_headline_of_a_loss_and_without_fusers():
    rows = [r for r in two_datasets().to_pylist() if r["method"] != "log_avg"]
    lost = [r | {"value": r["value"] - 0.2} if r["method"] == "nlc" else r for r in rows]
    assert "loses 14.5 points" in headline(table(lost))["text"][0]
    none = headline(table([r for r in rows if r["method"].startswith("single/")]))
    assert none["text"] == ["2 backbones were measured on 2 datasets; none was fused."]


def test_names_that_a_backbone_cannot_tell_apart_are_said():
    rows = two_datasets().to_pylist()
    assert summary.alike_names(table(rows)) == {}
    where = {"head": "embeddings", "kind": "measure"}
    rows += [
        row("a", "single/x", 0, 0, "alike_names", 0.5, **where),
        row("a", "single/y", 0, 0, "alike_names", 0.8, **where),
    ]
    rows += [row("b", "single/x", 0, 0, "alike_names", 0.0, **where)]
    assert summary.alike_names(table(rows)) == {"a": (0.8, "y")}
    assert headline(table(rows))["text"][-1] == (
        "On 1 of 2 datasets some class names are the same to a backbone's text tower (most: 80.0 % of a, to y): "
        "zero-shot cannot tell these classes apart."
    )
    unfused = headline(table([r for r in rows if r["method"].startswith("single/")]))["text"]
    assert (
        unfused[0] == "2 backbones were measured on 2 datasets; none was fused."
    )  # the page's headline
    assert len(unfused) == 2


def test_a_dataset_with_one_support_set_has_it_at_every_seed():
    """Its one value is no reason for the mean over datasets to move from seed to seed."""
    rows = two_datasets().to_pylist()
    rows += [row("c", "nlc", 1, 0, "top1", 0.1)]
    nlc = find(leaderboard(table(rows)), "nlc", 1)
    assert nlc.top1_std == pytest.approx(
        np.std([(0.6 + 0.7 + 0.1) / 3, (0.62 + 0.8 + 0.1) / 3], ddof=1)
    )
    assert nlc.top1 == pytest.approx((0.61 + 0.75 + 0.1) / 3)
    alone = [r for r in rows if r["seed"] == 0]
    assert find(leaderboard(table(alone)), "nlc", 1).top1_std is None


def test_short_classes_and_seeds_that_draw_the_same_are_said():
    rows = two_datasets().to_pylist()
    for dataset, shots, short, sets in (("a", 4, 3, 2), ("a", 16, 7, 1), ("b", 16, 0, 2)):
        values = {"short_classes": short, "support_sets": sets, "seeds": 2}
        where = {"head": "embeddings", "kind": "measure"}
        rows += [
            row(dataset, "set", shots, 0, key, value, **where) for key, value in values.items()
        ]
    text = headline(table(rows))["text"]
    assert text[-2:] == [
        "On 1 of 2 datasets some classes have fewer images than shots, and give what they have "
        "(most: 7 classes of a at 16 shots).",
        "At 16 shots all seeds draw the same images of a: one support set, without a spread over seeds.",
    ]
    assert leaderboard(table(rows)) == leaderboard(two_datasets())


def test_what_failed_for_one_reason_is_one_sentence():
    def lost(dataset, backbone, error, split=None):
        row = {"dataset": dataset, "backbone": backbone, "error": error, "split": split}
        return row | {"step": "embed"}

    rows = [lost(f"d{n}", "mute", "not finite") for n in range(7)]
    rows += [lost("d1", None, "unread", split) for split in ("train", "test")]
    rows += [lost("d2", None, "unread"), lost(None, "gone", "no file.")]
    text = headline(two_datasets(), pa.Table.from_pylist(rows, schema=schema.FAILURES))["text"]
    assert text[-3:] == [
        "mute is left out of d0, d1, d2, d3, d4 and 2 others: not finite.",
        "d1, d2 are left out: unread.",
        "gone is left out of every dataset: no file.",
    ]


def test_pair_matrix_keeps_its_direction():
    rows = two_datasets().to_pylist()
    rows += [row("a", "pair/x/y", 0, 0, "rescue", 0.2), row("b", "pair/x/y", 0, 0, "rescue", 0.4)]
    matrix = summary.pair_means(table(rows), "rescue", "zero_shot")
    assert matrix.loc["x", "y"] == pytest.approx(0.3)
    assert np.isnan(matrix.loc["y", "x"])


def test_a_kind_is_what_the_table_says_whatever_the_name():
    """`oracle` by name alone is no bound, and a control is ranked and compared, but no headline."""
    kinds = {"log_avg": "control", "nlc": "fuser"}
    named = {"log_avg": "oracle of delphi", "nlc": "single/minded"}
    rows = two_datasets().to_pylist()
    turned = [
        r
        | {"kind": kinds.get(r["method"], r["kind"]), "method": named.get(r["method"], r["method"])}
        for r in rows
    ]
    board = leaderboard(table(turned))
    assert find(board, "single/minded", 1).kind == "fuser"
    control = find(board, "oracle of delphi", 0)
    assert (control.kind, control.on_test[3:]) == ("control", (0, 2, 0))
    assert summary.backbones(table(turned)) == ["x", "y"]
    text = headline(table(turned))["text"]
    assert text[0].startswith("Fusing 2 backbones with single/minded at 1 labelled image")
    assert not any("delphi" in sentence for sentence in text)
    assert "| `oracle of delphi` (control) | 65.0 (0.0) |  |" in markdown(table(turned))


def test_markdown():
    lines = markdown(two_datasets()).splitlines()
    assert lines[0] == "| method | no labels | 1 shot |"
    assert "| `nlc` |  | 68.0 (+5.5) |" in lines
    assert "| `oracle` (bound) | 90.0 (+25.0) |  |" in lines


def test_terminal():
    import io

    from rich.console import Console

    console = Console(file=io.StringIO(), width=100)
    console.print(console_table(two_datasets()))
    (line,) = [
        line for line in console.file.getvalue().splitlines() if line.strip().startswith("nlc")
    ]
    assert line.split() == ["nlc", "68.0", "+5.5"]


@pytest.mark.parametrize(
    ("value", "text"), [(0.0123, "+1.2"), (-0.0123, "−1.2"), (0.0004, "0.0"), (-0.0004, "0.0")]
)
def test_points(value, text):
    assert gains.points(value) == text


def synergy_rows(values: dict[str, float], half: float = 0.02) -> list[dict]:
    """Synergy of `nlc` at 1 shot on each dataset, and itself on one backbone."""
    rows = []
    for dataset, value in values.items():
        ends = {"ci_low": value - half, "ci_high": value + half}
        rows.append(row(dataset, "nlc", 1, 0, "synergy_over_draws", value, **ends))
        for seed in (0, 1):
            rows.append(row(dataset, "alone/nlc", 1, seed, "top1", 0.5, kind="alone"))
    return rows


def test_the_headline_is_synergy_and_the_gain_over_a_single_backbone_stands_behind():
    found = headline(table([*two_datasets().to_pylist(), *synergy_rows({"a": 0.03, "b": 0.01})]))
    assert (found["synergy"], found["gain"]) == (pytest.approx(0.02), pytest.approx(0.055))
    assert found["synergy_low"] < 0.02 < found["synergy_high"]
    assert "gains +2.0 points [" in found["text"][0]
    assert " (only 2 datasets) of top-1 accuracy over the same method" in found["text"][0]
    assert found["text"][1].startswith("That one backbone, chosen on the support set, has 50.0 % ")
    assert (
        "best single zero-shot backbone (picked with the same labels) it gains +5.5"
        in (found["text"][2])
    )
    (oracle,) = [text for text in found["text"] if "oracle" in text]
    assert "a bound on choosing among the backbones' answers, not on fusing them" in oracle


def test_the_interval_of_synergy_holds_datasets_and_what_is_inside_them():
    """Against a slow loop with Python's own generator."""
    values = {name: 0.01 * n for n, name in enumerate("abcdefg")}
    scores = table([*two_datasets().to_pylist(), *synergy_rows(values, half=0.05)])
    found = gains.synergies(scores)["zero_shot", "nlc", 1]
    draw = random.Random(0)
    means = []
    for _ in range(4000):
        names = draw.choices(list(values), k=len(values))
        means.append(np.mean([draw.gauss(values[name], 0.05 / 1.96) for name in names]))
    assert (found.low, found.high) == pytest.approx(np.quantile(means, (0.025, 0.975)), abs=0.002)
    assert gains.interval(found).endswith("]")  # seven datasets are enough
    one = gains.synergies(table(synergy_rows({"a": 0.03})))["zero_shot", "nlc", 1]
    assert (one.low, one.high) == pytest.approx((0.01, 0.05))
    assert "one dataset" in gains.interval(one)


def test_sets_that_a_backbone_has_seen_are_told_apart():
    rows = [*two_datasets().to_pylist(), *synergy_rows({"a": 0.03, "b": 0.01})]
    text = headline(table(rows), seen={"a": ["x"], "b": []})["text"]
    (words,) = [one for one in text if "pretraining data" in one]
    assert "pretraining data (a) the synergy is +1.0 points" in words
    assert "over 1 datasets" not in words
    assert not [one for one in headline(table(rows))["text"] if "pretraining data" in one]


def test_a_method_on_one_backbone_is_in_the_table_and_its_bound_is_not():
    rows = [*two_datasets().to_pylist(), *synergy_rows({"a": 0.03, "b": 0.01})]
    rows += [row(d, "alone_on_test/nlc", 1, 0, "top1", 0.6, kind="bound") for d in "ab"]
    board = markdown(table(rows))
    assert "| `alone/nlc` |" in board
    assert "alone_on_test/nlc" not in board
    assert find(leaderboard(table(rows)), "alone_on_test/nlc", 1).top1 == 0.6
