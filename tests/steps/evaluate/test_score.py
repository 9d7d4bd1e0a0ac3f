"""Evaluation of one dataset, on embeddings made up with known answers."""

import dataclasses

import numpy as np
import pytest
import statsmodels.stats.contingency_tables
import torch
from scipy.special import softmax
from sklearn.metrics import accuracy_score

from clipray import schema
from clipray.artefacts import evaluations as evaluate
from clipray.artefacts import support_sets
from clipray.config import Campaign, Fuser, Head, parse
from clipray.errors import ConfigError
from clipray.fingerprint import fingerprint
from clipray.numerics.fusers import FUSERS
from clipray.numerics.heads import cross_fit, head_of
from clipray.steps import checks, read
from clipray.steps.evaluate import fitted, plan, score
from clipray.steps.evaluate.rows import ON_TEST, Place, Scores
from tests.steps.worlds import BACKBONES, CLASSES, DIM, World, unit


def value(scores, **where) -> float:
    for column, wanted in where.items():
        scores = scores[scores[column] == wanted]
    assert len(scores) == 1
    return float(scores["value"].iloc[0])


def test_scores_are_those_of_a_plain_computation(tmp_path):
    world = World(tmp_path)
    scores, outcomes = world.frames(world.task())
    logits = {
        n: 10 * unit(world.embeddings["test", n]) @ unit(world.weights[n]).T for n in BACKBONES
    }
    right = {n: logits[n].argmax(1) == world.labels["test"] for n in BACKBONES}
    for name in BACKBONES:
        assert value(scores, method=f"single/{name}", metric="top1") == pytest.approx(
            right[name].mean()
        )
    assert value(scores, method="oracle", metric="top1") == pytest.approx(
        np.any(list(right.values()), axis=0).mean()
    )
    log_p = [z - np.log(np.exp(z).sum(1, keepdims=True)) for z in logits.values()]
    fused = np.mean(log_p, axis=0).argmax(1)
    assert value(scores, method="log_avg", metric="top1") == pytest.approx(
        accuracy_score(world.labels["test"], fused)
    )
    best = max(r.mean() for r in right.values())
    gain = np.any(list(right.values()), axis=0).mean() - best
    assert value(scores, method="set", metric="oracle_gain") == pytest.approx(gain)
    assert value(scores, method="set", metric="complementarity") == pytest.approx(gain / (1 - best))
    said = outcomes[outcomes["method"] == "log_avg"].set_index("image_id").loc[world.ids["test"]]
    assert (said["prediction"].to_numpy() == fused).all()
    assert (said["label"].to_numpy() == world.labels["test"]).all()


def test_every_few_shot_method_has_a_row_for_each_shot_and_seed(tmp_path):
    world = World(tmp_path)
    scores, _ = world.frames(world.task())
    rows = scores[(scores["method"] == "c_log_avg") & (scores["metric"] == "top1")]
    assert sorted(zip(rows["shots"], rows["seed"], strict=True)) == [(1, 0), (1, 1), (4, 0), (4, 1)]
    assert (rows["ci_low"] <= rows["value"]).all()
    assert (rows["value"] <= rows["ci_high"]).all()
    label_free = scores[scores["method"].isin(["log_avg", "oracle", "single/alpha"])]
    assert set(label_free["shots"]) == {0}
    gains = scores[(scores["method"] == "c_log_avg") & (scores["metric"] == "gain_on_support")]
    for _, row in gains.iterrows():
        where = {"shots": row["shots"], "seed": row["seed"], "metric": "top1"}
        ours = value(scores, method="c_log_avg", **where)
        assert row["value"] == pytest.approx(ours - value(scores, method=checks.REFERENCE, **where))


def test_test_labels_change_no_prediction(tmp_path):
    """Poisoned test labels: everything but the columns that say so predicts the same."""
    fusers = ("log_avg", "c_log_avg", "nlc")
    clean, poisoned = World(tmp_path / "a"), World(tmp_path / "b")
    poisoned.labels["test"] = (poisoned.labels["test"] + 1) % CLASSES
    for world in (clean, poisoned):
        world.outcomes = world.frames(
            world.task(heads=("zero_shot", "linear_probe"), fusers=fusers)
        )[1]
    keys = ["head", "method", "shots", "seed", "image_id"]
    both = clean.outcomes.merge(poisoned.outcomes, on=keys, suffixes=("", "_poisoned"))
    assert len(both) == len(clean.outcomes)
    differs = both[both["prediction"] != both["prediction_poisoned"]]
    bounds = {f"alone_on_test/{fuser}" for fuser in fusers}
    assert set(differs["method"]) <= {"oracle", "best_single_on_test", *bounds}
    assert set(both["method"]) >= {"alone/c_log_avg", "alone/nlc"}  # whose backbone is chosen, too
    assert "oracle" in set(differs["method"])


def test_permuting_backbones_changes_no_fused_score(tmp_path):
    fusers = ("log_avg", "c_log_avg", "conf", "vote_top1")
    world = World(tmp_path)
    one, _ = world.frames(world.task(BACKBONES, fusers=fusers))
    other, _ = world.frames(world.task(BACKBONES[::-1], fusers=fusers))
    keys = ["head", "method", "shots", "seed", "metric"]
    mine = one[one["method"].isin([*fusers, "oracle", "set"])]
    both = mine.merge(other, on=keys, suffixes=("", "_other"))
    assert len(both) == len(mine)
    assert np.allclose(both["value"], both["value_other"], atol=1e-5, equal_nan=True)


def test_images_held_out_for_fusers_change_fusers_and_no_backbone(tmp_path):
    world = World(tmp_path)
    task = world.task(heads=("zero_shot", "linear_probe"), shots=(4,))
    shared, _ = world.frames(task)
    parted, _ = world.frames(dataclasses.replace(task, held_out=0.25))

    def nll(scores, head, method):
        own = scores[
            (scores["head"] == head) & (scores["method"] == method) & (scores["shots"] == 4)
        ]
        return own[own["metric"] == "nll"].sort_values("seed")["value"].tolist()

    def same(head, method):
        return np.allclose(nll(shared, head, method), nll(parted, head, method))

    assert not same("zero_shot", "c_log_avg")
    assert not same("linear_probe", "c_log_avg")
    assert not same("linear_probe", "single/alpha")  # its head has three of four images a class
    assert shared[shared["shots"] == 0].equals(parted[parted["shots"] == 0])


def test_failed_images_are_counted_not_scored(tmp_path):
    world = World(tmp_path)
    world.errors["test", "test003"] = "not an image"
    world.labels["test"] = world.labels["test"].astype(object)
    world.labels["test"][5] = None
    scores, outcomes = world.frames(world.task())
    assert set(scores["n_expected"]) == {60}
    assert set(scores["n_scored"]) == {58}
    assert not {"test003", "test005"} & set(outcomes["image_id"])


def test_backbones_that_saw_different_labels_are_refused(tmp_path):
    world = World(tmp_path)
    task = world.task()
    world.labels["test"] = (world.labels["test"] + 1) % CLASSES
    world.write("test", "beta")
    with pytest.raises(ValueError, match="holds other images or labels"):
        plan.evaluate(world.store, task, "e")


def test_an_image_of_the_test_split_is_never_drawn(tmp_path):
    world = World(tmp_path)
    world.ids["train"][:20] = world.ids["test"][:20]
    world.labels["train"][:20] = world.labels["test"][:20]
    task = world.task(shots=(40,))
    splits = {
        s: read.read_split(world.store, places, CLASSES) for s, places in task.embeddings.items()
    }
    train = read.read_train(world.store, task, CLASSES)
    assert set(train.image_ids) == set(world.ids["train"][20:])
    whole = splits["train"]  # even where the images are still there
    sets = read.draw(world.store, task, whole, CLASSES, task.shots, task.seeds)
    (drawn,) = sets.draws  # there is nothing to choose
    assert {whole.image_ids[row] for row in drawn.rows_K} == set(world.ids["train"][20:])


def test_support_sets_are_recorded_and_those_without_a_choice_count_once(tmp_path):
    world = World(tmp_path)
    world.labels["train"][:] = np.arange(40) % CLASSES  # 10 images a class
    task = world.task(shots=(1, 9, 10, 12))
    scores, _ = world.frames(task)
    told = world.store.manifest(evaluate.address(world.store, task))
    assert told["distinct_support_sets"] == {"1": 2, "9": 2, "10": 1, "12": 1}
    short = {"1": 0, "9": 0, "10": 0, "12": CLASSES}
    assert told["classes_with_fewer_images_than_shots"] == short
    rows = scores[(scores["method"] == "c_log_avg") & (scores["metric"] == "top1")]
    assert rows.groupby("shots")["seed"].agg(list).to_dict() == {
        1: [0, 1],
        9: [0, 1],
        10: [0],
        12: [0],
    }
    stated = scores[scores["metric"] == "short_classes"].set_index("shots")["value"].to_dict()
    assert stated == {int(k): n for k, n in short.items()}

    # the record says which images, and is found again by other backbones
    table = support_sets.read(world.store, told["support_sets"]).to_pandas()
    assert set(table["dataset"]) == {"made"}
    assert table.groupby(["shots", "seed"]).size().to_dict() == {
        (1, 0): 4, (1, 1): 4, (9, 0): 36, (9, 1): 36, (10, 0): 40, (12, 0): 40,
    }  # fmt: skip
    labels = dict(zip(world.ids["train"], world.labels["train"].tolist(), strict=True))
    assert (table["image_id"].map(labels) == table["label"]).all()
    other = world.task(BACKBONES[:2], shots=(1, 9, 10, 12))
    world.frames(other)
    assert evaluate.address(world.store, other) != evaluate.address(world.store, task)
    again = world.store.manifest(evaluate.address(world.store, other))
    assert again["support_sets"] == told["support_sets"]
    world.labels["train"][0] = 3
    world.frames(world.task(shots=(1,)))
    assert len(world.store.names("support_sets")) == 2


def test_every_row_says_what_its_method_is(tmp_path):
    world = World(tmp_path)
    own = [Fuser(name=f"my-{f}", fuser=f) for f in ("ncm_concat", "best_single_on_support", "nlc")]
    scores, _ = world.frames(world.task(fusers=("log_avg", "proto_avg", *own), shots=(1,)))
    assert set(scores["kind"]) == set(schema.KINDS)
    kinds = scores[scores["head"] == "zero_shot"].groupby("method")["kind"].agg(set).to_dict()
    expected = {f"single/{name}": "single" for name in BACKBONES}
    expected |= {"oracle": "bound", "best_single_on_test": "bound", "set": "measure"}
    expected |= {checks.REFERENCE: "reference", "my-best_single_on_support": "reference"}
    expected |= {"log_avg": "fuser", "my-nlc": "fuser"}
    expected |= {"proto_avg": "control", "my-ncm_concat": "control"}
    fitted = ("my-nlc", "proto_avg", "my-ncm_concat")
    expected |= {f"alone/{name}": "alone" for name in fitted}
    expected |= {f"alone_on_test/{name}": "bound" for name in fitted}
    expected |= {f"my-nlc/{name}": "measure" for name in BACKBONES}  # its weights
    pairs = {f"pair/{a}/{b}": "measure" for a in BACKBONES for b in BACKBONES if a != b}
    assert kinds == {method: {kind} for method, kind in (expected | pairs).items()}
    assert set(scores[scores["head"] == score.SPACES]["kind"]) == {"measure"}


def test_weights_are_told_by_backbone(tmp_path):
    """Those of `conf_weighted` by hand, from each backbone's confidences."""
    world = World(tmp_path)
    scores, _ = world.frames(world.task(fusers=("conf_weighted",)))
    every = [10 * unit(world.embeddings["test", n]) @ unit(world.weights[n]).T for n in BACKBONES]
    logits = np.stack(every, axis=1)
    expected = softmax(softmax(logits, 2).max(2), 1)
    right = logits.argmax(2) == world.labels["test"][:, None]
    for m, name in enumerate(BACKBONES):
        where, own = {"method": f"conf_weighted/{name}"}, expected[:, m]
        told = {
            "weight": own.mean(),
            "weight_p10": np.quantile(own, 0.1),
            "weight_p50": np.quantile(own, 0.5),
            "weight_p90": np.quantile(own, 0.9),
            "weight_where_right": own[right[:, m]].mean(),
            "weight_where_wrong": own[~right[:, m]].mean(),
        }
        for metric, number in told.items():
            assert value(scores, **where, metric=metric) == pytest.approx(number, abs=1e-5)


def test_a_head_with_settings_of_its_own(tmp_path):
    world = World(tmp_path)
    heads = (
        "tip_adapter",
        Head(name="text", head="tip_adapter", settings={"alpha": 0.0}),
        "zero_shot",
    )
    scores, _ = world.frames(world.task(heads=heads, fusers=(), shots=(4,)))
    of = {
        h: value(scores, head=h, method="single/alpha", metric="nll", seed=0)
        for h in ("tip_adapter", "text")
    }
    assert of["text"] == pytest.approx(
        value(scores, head="zero_shot", method="single/alpha", metric="nll"), abs=1e-6
    )
    assert of["tip_adapter"] != pytest.approx(of["text"], abs=1e-3)


def test_settings_chosen_for_a_dataset_and_for_a_support_set(tmp_path):
    world = World(tmp_path)
    plain = [
        Fuser(name=f"t{prior}", fuser="c_log_avg", settings={"prior_count": prior})
        for prior in (1.0, 30.0, 90.0)
    ]
    chosen = [
        {"dataset": "other", "settings": {"prior_count": 1e6}},
        {"dataset": "made", "settings": {"prior_count": 30.0}},
        {"dataset": "made", "shots": 4, "seed": 1, "settings": {"prior_count": 90.0}},
    ]
    tuned = parse(Fuser, {"name": "tuned", "fuser": "c_log_avg", "chosen": chosen}, "test").on(
        "made"
    )
    scores, _ = world.frames(world.task(fusers=(*plain, tuned), shots=(1, 4)))
    for shots, seed, method in ((1, 0, "t30.0"), (1, 1, "t30.0"), (4, 0, "t30.0"), (4, 1, "t90.0")):
        same = {"shots": shots, "seed": seed, "metric": "nll", "head": "zero_shot"}
        assert value(scores, method="tuned", **same) == value(scores, method=method, **same)
        assert value(scores, method="tuned", **same) != value(scores, method="t1.0", **same)


def test_heads_with_labels_share_them_with_the_fusers(tmp_path):
    world = World(tmp_path)
    scores, _ = world.frames(
        world.task(heads=("linear_probe",), fusers=("log_avg", "c_log_avg"), shots=(4,))
    )
    singles = scores[(scores["method"] == "single/alpha") & (scores["metric"] == "top1")]
    assert sorted(zip(singles["shots"], singles["seed"], strict=True)) == [(4, 0), (4, 1)]
    assert value(scores, method="c_log_avg", metric="top1", seed=0) > 0.5


def test_class_names_that_a_backbone_cannot_tell_apart_are_counted(tmp_path):
    world = World(tmp_path)
    world.weights["beta"][3] = world.weights["beta"][0]
    scores, _ = world.frames(world.task())
    share = {
        name: value(scores, method=f"single/{name}", metric="alike_names") for name in BACKBONES
    }
    assert share == {"alpha": 0.0, "beta": 2 / CLASSES, "gamma": 0.0}


@pytest.mark.parametrize(
    ("head", "shots", "borrowed"),
    [
        ("linear_probe", 1, True),
        ("linear_probe", 2, False),
        ("tip_adapter", 1, False),
        ("zero_shot", 1, False),
    ],
)
def test_fusers_are_told_where_a_heads_logits_had_to_be_borrowed(tmp_path, head, shots, borrowed):
    world = World(tmp_path)
    task = world.task(heads=(head,), shots=(shots,))
    splits = {
        s: read.read_split(world.store, places, CLASSES) for s, places in task.embeddings.items()
    }
    weights = read.read_classifiers(world.store, task)
    draw = read.draw(world.store, task, splits["train"], CLASSES, (shots,), 1).draws[0]
    views = read.views_of(task, weights, splits["train"])
    problem = cross_fit.shots_of(views, splits["train"].labels_N, draw.rows_K, draw.seed)
    support = cross_fit.support(head_of(head), problem, 3)
    assert support.borrowed is borrowed
    assert support.take(support.labels_K == 0).borrowed is borrowed


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fusers": ["nobody"]}, "fusers.0: there is no 'nobody'. Known: "),
        ({"heads": ["nothing"]}, "heads.0: there is no 'nothing'. Known: zero_shot"),
        (
            {"heads": [{"name": "t", "head": "tip_adapter", "settings": {"gamma": 1}}]},
            "heads.0.settings: .* 'gamma'. Known: alpha",
        ),
        ({"fusers": ["log_avg", "log_avg"]}, "log_avg named more than once"),
        (
            {"fusers": [{"name": "n", "fuser": "nlc", "settings": {"nonsense": 1}}]},
            "fusers.0.settings: .* 'nonsense'",
        ),
        (
            {"fusers": [{"name": "n", "fuser": "nlc", "settings": {"hidden": 0.5}}]},
            "fusers.0.settings.hidden: must be a whole number, not 0.5",
        ),
        (
            {"fusers": [{"name": "n", "fuser": "nlc", "settings": {"weight_map": "log"}}]},
            "settings.weight_map: must be 'linear', .*, not 'log'",
        ),
        (
            {"fusers": [{"name": "n", "fuser": "nlc", "settings": {"combine": "probs"}}]},
            "must be 'softmax'",
        ),
        (
            {
                "fusers": [
                    {
                        "name": "n",
                        "fuser": "c_log_avg",
                        "settings": {},
                        "chosen": [{"dataset": "d", "settings": {"x": 1}}],
                    }
                ]
            },
            "fusers.0.chosen.0.settings: there is no 'x'. Known: prior_count",
        ),
    ],
)
def test_what_a_config_cannot_mean_is_refused(changes, words):
    values = {
        "workspace": "w",
        "datasets": ["d"],
        "backbones": ["b"],
        "precision": "fp32",
        "heads": ["zero_shot"],
    }
    with pytest.raises(ConfigError, match=words):
        checks.check(parse(Campaign, values | {"seeds": 1} | changes, "test"))


def test_costs_add_up_and_name_the_backbones_that_run(tmp_path):
    world = World(tmp_path)
    costs = tuple({"gflops": 1.0 * 4**m, "latency_ms": 2.0, "memory_mb": 10.0} for m in range(3))
    task = world.task(fusers=("log_avg", "nlc"), shots=(1,))
    scores, _ = world.frames(dataclasses.replace(task, costs=costs))
    assert fingerprint(dataclasses.replace(task, costs=costs)) == fingerprint(task)
    assert value(scores, method="single/beta", metric="gflops") == 4.0
    small = 2 * 3 * CLASSES / 1e9
    assert value(scores, method="log_avg", metric="gflops") == pytest.approx(21 + small, abs=1e-12)
    gate = 2 * (3 * DIM * 128 + 128 * 3) / 1e9
    assert value(scores, method="nlc", metric="gflops", seed=0) == pytest.approx(
        21 + small + gate, abs=1e-12
    )
    assert value(scores, method="nlc", metric="memory_mb", seed=0) == 30.0
    assert value(scores, method=checks.REFERENCE, metric="latency_ms", seed=0) == 2.0


def test_pairs_of_embedding_spaces_and_mcnemars_test(tmp_path):
    world = World(tmp_path)
    world.embeddings["test", "beta"] = (
        3 * world.embeddings["test", "alpha"]
    )  # the same space at another scale
    scores, outcomes = world.frames(world.task(shots=(4,)))
    assert value(scores, method="pair/alpha/beta", metric="cka") == pytest.approx(1)
    assert value(scores, method="pair/beta/alpha", metric="mutual_knn") == 1
    assert value(scores, method="pair/alpha/gamma", metric="cka") < 0.9
    said = {
        method: rows.set_index("image_id").eval("prediction == label").loc[world.ids["test"]]
        for method, rows in outcomes[(outcomes["seed"] == 1) & (outcomes["shots"] == 4)].groupby(
            "method"
        )
    }
    a, b = said["c_log_avg"], said[checks.REFERENCE]
    table = [[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]]
    expected = statsmodels.stats.contingency_tables.mcnemar(table, exact=True).pvalue
    assert value(scores, method="c_log_avg", metric="p_on_support", seed=1) == pytest.approx(
        expected
    )


def test_saved_fusers_say_again_what_was_scored(tmp_path):
    world = World(tmp_path)
    task = dataclasses.replace(
        world.task(fusers=("nlc", "super_learner"), shots=(1, 4)), save_fusers=True
    )
    _, outcomes = world.frames(task)
    place = evaluate.address(world.store, task)
    entry, state, about = fitted.read(world.store, fitted.path(place, "zero_shot", "nlc", 4, 1))
    assert (entry.fuser, about["dataset"], tuple(about["backbones"])) == ("nlc", "made", BACKBONES)
    embeddings = [torch.tensor(world.embeddings["test", name]).float() for name in BACKBONES]
    weights = [torch.tensor(world.weights[name]).float() for name in BACKBONES]
    logits = torch.stack(
        [10 * _normal(e) @ w.T for e, w in zip(embeddings, weights, strict=True)], 1
    )
    said = outcomes[
        (outcomes["method"] == "nlc") & (outcomes["shots"] == 4) & (outcomes["seed"] == 1)
    ]
    expected = said.set_index("image_id").loc[world.ids["test"], "prediction"].to_numpy()
    assert (
        FUSERS[entry.fuser].apply(state, logits, embeddings).argmax(1).numpy() == expected
    ).all()
    assert not world.store.names(f"{evaluate.address(world.store, world.task())}/{fitted.FOLDER}")


def test_an_ensemble_of_one_has_no_synergy(tmp_path):
    fusers = ("c_log_avg", "nlc", "super_learner", "guarded", "proto_avg", "linear_probe_concat")
    world = World(tmp_path)
    scores, outcomes = world.frames(world.task(BACKBONES[:1], fusers=fusers))
    synergy = scores[scores["metric"].isin(["synergy", "synergy_over_draws", "synergy_on_test"])]
    assert set(synergy["method"]) == set(fusers)
    assert (synergy[["value", "ci_low", "ci_high"]] == 0).all(axis=None)
    said = outcomes.set_index(["method", "shots", "seed", "image_id"])[["prediction", "confidence"]]
    for fuser in fusers:
        own = said.loc[
            fuser
        ]  # `guarded` stands at no labels too, where one backbone cannot be chosen
        assert own[own.index.get_level_values("shots") > 0].equals(said.loc[f"alone/{fuser}"])


def test_synergy_is_fused_minus_alone_with_an_interval_over_draws(tmp_path):
    world = World(tmp_path)
    scores, _ = world.frames(world.task(shots=(4,)))
    each = []
    for seed in (0, 1):
        where = {"shots": 4, "seed": seed, "metric": "top1"}
        fused = value(scores, method="c_log_avg", **where)
        alone = value(scores, method="alone/c_log_avg", **where)
        bound = value(scores, method="alone_on_test/c_log_avg", **where)
        assert alone <= bound
        each.append(value(scores, method="c_log_avg", metric="synergy", seed=seed))
        assert each[-1] == pytest.approx(fused - alone)
    over = scores[(scores["metric"] == "synergy_over_draws") & (scores["method"] == "c_log_avg")]
    assert over["value"].item() == pytest.approx(np.mean(each))
    assert over["ci_low"].item() <= over["value"].item() <= over["ci_high"].item()


def test_without_labels_only_the_mean_single_and_hindsight_compare(tmp_path):
    world = World(tmp_path)
    scores, _ = world.frames(world.task(heads=("zero_shot", "linear_probe"), shots=(4,)))
    own = {"method": "log_avg", "head": "zero_shot"}
    singles = [
        value(scores, method=f"single/{name}", head="zero_shot", metric="top1")
        for name in BACKBONES
    ]
    gained = value(scores, metric="top1", **own) - np.mean(singles)
    assert value(scores, metric="gain_on_mean", **own) == pytest.approx(gained)
    metrics = set(
        scores[(scores["method"] == "log_avg") & (scores["head"] == "zero_shot")]["metric"]
    )
    assert "gain_on_test" in metrics
    assert "synergy" not in metrics
    # with a head that has learned, one backbone can be chosen with the head's own labels
    there = {"method": "log_avg", "head": "linear_probe", "seed": 0}
    assert value(scores, metric="synergy", **there) == value(
        scores, metric="gain_on_support", **there
    )


def test_alone_can_be_switched_off(tmp_path):
    world = World(tmp_path)
    task = world.task()
    with_alone, _ = world.frames(task)
    without, _ = world.frames(dataclasses.replace(task, alone=False))
    keys = ["head", "method", "shots", "seed", "metric"]
    assert not without["method"].str.startswith("alone").any()
    assert not (without["metric"] == "synergy").any()
    both = without.merge(with_alone, on=keys, suffixes=("", "_with"))
    assert len(both) == len(without)
    assert both["value"].equals(both["value_with"])


def test_the_order_in_which_methods_are_added_changes_no_row():
    random = torch.Generator().manual_seed(0)
    labels_N = torch.randint(3, (50,), generator=random)
    added = {
        name: torch.randn(50, 3, generator=random).log_softmax(1)
        for name in (checks.REFERENCE, "oracle", ON_TEST, "nlc", "alone/nlc", "alone_on_test/nlc")
    }
    tables = []
    for names in (list(added), list(added)[::-1]):
        scores = Scores("made", [str(i) for i in range(50)], labels_N, 50)
        for name in names:
            scores.add(Place("zero_shot", name, 1, 0), "fuser", added[name])
        scores.compare(Place("zero_shot", "nlc", 1, 0), "alone/nlc", "alone_on_test/nlc")
        tables.append(scores.scores().to_pandas().sort_values(["method", "metric"]))
    one, other = (table.reset_index(drop=True) for table in tables)
    assert {"gain_on_support", "gain_on_test", "headroom_captured", "synergy"} <= set(one["metric"])
    assert one.equals(other)


def _normal(x: torch.Tensor) -> torch.Tensor:
    return x / x.norm(dim=1, keepdim=True)
