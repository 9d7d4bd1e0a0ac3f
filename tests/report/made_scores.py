"""Made-up scores in the shape that `steps/evaluate` writes, with numbers that can be checked by hand or by scipy."""

from itertools import permutations

import numpy as np
import pyarrow as pa

from clipray import schema

BACKBONES = ("vit-p6-36", "rn-48", "convnext-48", "vit-p8-40", "rn-32")

KINDS = {"single": "single", "pair": "measure", "set": "measure", "oracle": "bound"}
KINDS |= {"best_single_on_test": "bound", "best_single_on_support": "reference"}


def row(
    dataset: str, method: str, shots: int, seed: int, metric: str, value: float, **other
) -> dict:
    """One score row."""
    constants = {
        "split": "test",
        "perturbation": "none",
        "severity": 0,
        "head": "zero_shot",
        "n_scored": 500,
    }
    constants |= {"n_expected": 500, "ci_low": value - 0.02, "ci_high": value + 0.02}
    own = {
        "dataset": dataset,
        "method": method,
        "shots": shots,
        "seed": seed,
        "metric": metric,
        "value": value,
    }
    return constants | own | {"kind": KINDS.get(method.partition("/")[0], "fuser")} | other


def table(rows: list[dict]) -> pa.Table:
    """Rows as `schema.SCORES`."""
    return pa.Table.from_pylist(rows, schema=schema.SCORES)


def campaign(datasets: int = 21, shots: tuple[int, ...] = (1, 4, 16), seeds: int = 5) -> pa.Table:
    """A whole campaign: five backbones, label-free and fitted fusers, bounds, complementarity."""
    random = np.random.default_rng(0)
    names = [
        "dtd", "eurosat", "flowers102", "food101", "gtsrb", "mnist", "pets", "resisc45", "stl10", "sun397", "svhn",
        "cifar10", "cifar100", "caltech101", "country211", "cars", "aircraft", "cub200", "clevr", "pcam", "sst2",
    ]  # fmt: skip
    rows = []
    for dataset in names[:datasets]:
        base, gap = random.uniform(0.15, 0.8), random.uniform(0.03, 0.2)
        counts = {"n_scored": 497, "n_expected": 500} if dataset == "dtd" else {}

        def add(*values, counts=counts):
            rows.append(row(*values, **counts))

        singles = {
            name: base - 0.02 * m + random.normal(0, 0.02) for m, name in enumerate(BACKBONES)
        }
        best = max(singles.values())
        for name, value in singles.items():
            add(dataset, f"single/{name}", 0, 0, "top1", value)
            add(dataset, f"single/{name}", 0, 0, "exclusive", random.uniform(0.005, 0.04))
            add(
                dataset,
                f"single/{name}",
                0,
                0,
                "shapley",
                (best + gap) / len(BACKBONES) + random.normal(0, 0.01),
            )
        add(dataset, "best_single_on_test", 0, 0, "top1", best)
        add(dataset, "oracle", 0, 0, "top1", best + gap)
        add(dataset, "set", 0, 0, "oracle_gain", gap)
        add(dataset, "set", 0, 0, "complementarity", gap / (1 - best))
        for a, b in permutations(BACKBONES, 2):
            near = 0.1 * (a[:2] == b[:2])
            add(dataset, f"pair/{a}/{b}", 0, 0, "disagreement", 0.3 - near + random.normal(0, 0.02))
            add(
                dataset, f"pair/{a}/{b}", 0, 0, "double_fault", 0.25 + near + random.normal(0, 0.02)
            )
            add(dataset, f"pair/{a}/{b}", 0, 0, "yule_q", 0.35 + 4 * near + random.normal(0, 0.05))
            add(dataset, f"pair/{a}/{b}", 0, 0, "rescue", random.uniform(0.15, 0.45))
        for method, gained in (
            ("mean_logits", 0.0),
            ("log_avg", 0.01),
            ("conf", -0.01),
            ("vote_top1", -0.02),
        ):
            add(dataset, method, 0, 0, "top1", best + gained + random.normal(0, 0.012))
        for k in shots:
            for seed in range(seeds):
                reference = best - abs(random.normal(0, 0.012)) / np.sqrt(k)
                add(dataset, "best_single_on_support", k, seed, "top1", reference)
                add(dataset, "c_log_avg", k, seed, "top1", best + 0.01 + random.normal(0, 0.01))
                add(
                    dataset,
                    "nlc",
                    k,
                    seed,
                    "top1",
                    best + 0.1 * gap * np.log2(k) + random.normal(0, 0.012),
                )
    return table([*rows, *weights(names[:datasets], max(shots, default=0))])


def weights(datasets: list[str], shots: int) -> list[dict]:
    """What `nlc` gives to each backbone: a fifth on average, more where the backbone is right."""
    random = np.random.default_rng(1)
    rows = []
    for dataset in datasets:
        own = random.dirichlet([8.0] * len(BACKBONES))
        for name, weight in zip(BACKBONES, own, strict=True):
            values = {
                "weight": weight,
                "weight_p10": 0.8 * weight,
                "weight_p50": weight,
                "weight_p90": 1.3 * weight,
                "weight_where_right": weight + 0.02,
                "weight_where_wrong": weight - 0.01,
            }
            kind = {"kind": "measure"} | ({"n_scored": 497} if dataset == "dtd" else {})
            for metric, value in values.items():
                rows.append(row(dataset, f"nlc/{name}", shots, 0, metric, value, **kind))
    return rows


def large(datasets: int = 30, methods: int = 40) -> pa.Table:
    """A campaign of that many datasets and methods, two heads, every metric that a method has."""
    random = np.random.default_rng(1)
    every = campaign(0).to_pylist()
    for d in range(datasets):
        dataset = f"set-{d:02d}"
        one = [r | {"dataset": dataset} for r in campaign(1, (1, 4, 16), 2).to_pylist()]
        every += [r for r in one if r["n_scored"] == 497]
        for place, head in [(m, h) for m in range(methods) for h in ("zero_shot", "tip_adapter")]:
            for shots in (1, 4, 16):
                base = 0.5 + 0.004 * place + 0.01 * random.normal() + 0.01 * shots
                name = f"method_{place:02d}"
                alone = row(dataset, f"alone/{name}", shots, 0, "top1", base - 0.03, kind="alone")
                values = {"top1": base, "top5": 0.95, "nll": 1.2, "brier": 0.5, "ece_width": 0.07}
                values |= {"aurc": 0.2, "balanced_accuracy": base, "gflops": 4.0}
                values |= {"synergy": 0.03, "synergy_over_draws": 0.03}
                own = [row(dataset, name, shots, 0, m, v) for m, v in values.items()]
                every += [r | {"head": head} for r in [alone, *own]]
    return table(every)


def looked_at(datasets: int) -> list[dict]:
    """What `steps.publish.details` gives of as many datasets: two backbones, three images each."""
    picture = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
    bins = [{"confidence": 0.3, "accuracy": 0.2, "images": 4}] * 2
    said = [["rn-32", "cat", 0.5], ["rn-48", "dog", 0.4]]
    example = {"kind": "one rescues", "of_kind": 3, "image_id": "x", "label": "cat <1>"}
    example |= {"fused": ["dog", 0.9], "said": said, "picture": picture, "key": "test/cat/1.png"}
    one = {"method": "nlc", "shots": 4, "images": 10, "backbones": ["rn-32", "rn-48"]}
    one |= {"best": "rn-32", "reliability": {"fused": bins, "rn-32": bins}}
    one |= {
        "risk": {"fused": [[0.5, 0.1], [1, 0.2]], "rn-32": [[1, 0.3]]},
        "examples": [example] * 3,
    }
    one |= {"classes": [{"name": "cat <1>", "images": 5, "fused": 0.5, "alone": 0.25}]}
    one |= {"confused": [{"label": "cat <1>", "answer": "dog", "images": 2, "share": 0.4}]}
    one |= {"patterns": [[[0, 1], 5], [[], 3], [[1], 2]]}
    twins = [{"image_id": "x", "label": label, "picture": picture} for label in ("cat <1>", "dog")]
    one |= {"alike": [{"cosine": 0.991, "images": twins}]}
    return [{"dataset": f"set-{d:02d}"} | one for d in range(datasets)]


def failures() -> pa.Table:
    """Three unreadable images."""
    listed = [
        (
            "dtd",
            "test",
            None,
            "read",
            "a1",
            "banded/banded_0012.jpg",
            "truncated image: 1024 of 20133 bytes",
        ),
        ("dtd", "test", None, "read", "a2", "zigzag/<b>&.jpg", "not an image"),
        ("dtd", "test", None, "read", "a3", "woven/woven_0003.jpg", "not an image"),
    ]
    return pa.Table.from_pylist(
        [dict(zip(schema.FAILURES.names, one, strict=True)) for one in listed], schema.FAILURES
    )


ABOUT = {
    "campaign": {"name": "made up", "datasets": ["dtd"], "shots": [1, 4, 16], "precision": "fp32"},
    "commit": "0123abc",
    "dirty": False,
    "versions": {"torch": "2.15.0"},
}
