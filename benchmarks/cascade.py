"""What a cascade promises, against what it keeps on test images, over datasets and support sets.

    python benchmarks/cascade.py --data-root FOLDER parquet/cifar10 wds/flowers5 --shots 16 --seeds 5 --drop 0.05

Embeds what is missing with the shipped backbones, fits a fuser with N images a class and a cascade with a promise at
90 % confidence, and compares both on the test images. A row is a dataset: means over support sets, and how many of
those sets keep the promise.
"""

import argparse

import numpy as np
import torch

from clipray.config import Campaign
from clipray.numerics.cascade.fitted import apply_cascade, fit_cascade
from clipray.numerics.cascade.search import by_cost
from clipray.numerics.cascade.thresholds import Target
from clipray.numerics.fusers import FUSERS, settings_of
from clipray.numerics.heads import HEADS, cross_fit
from clipray.steps import campaign as steps
from clipray.steps import evaluations, read
from clipray.steps.todo import known_cards

HEAD, CONFIDENCE, FOLDS = "zero_shot", 0.9, 5


def campaign(given: argparse.Namespace) -> Campaign:
    """What embeds the images."""
    return Campaign(
        name="cascade",
        workspace=given.workspace,
        data_root=given.data_root,
        datasets=tuple(given.datasets),
        backbones=("shipped",),
        precision="fp32",
        heads=(HEAD,),
        fusers=(given.fuser,),
        shots=(given.shots,),
        seeds=given.seeds,
        limit=given.limit,
    )


def rows(todo: steps.Plan, given: argparse.Namespace):
    """Yields of each dataset and support set what the cascade keeps and saves."""
    gflops = {name: card["image_gflops"] for name, card in known_cards(todo).items()}
    head, settings = HEADS[HEAD], settings_of(given.fuser)
    fuse = FUSERS[given.fuser]
    target = Target(given.drop, None, CONFIDENCE)
    for task in evaluations.tasks(todo):
        weights = read.read_classifiers(todo.store, task)
        classes = len(weights[0])
        train = read.read_train(todo.store, task, classes)
        test = read.read_split(todo.store, task.embeddings["test"], classes)
        views, others = (read.views_of(task, weights, split) for split in (train, test))
        heads = head.fit([None] * len(views), head.settings)
        logits_NMC = cross_fit.logits(head, heads, others)
        gflops_M = [gflops[name] for name in task.backbones]
        order = by_cost(range(len(gflops_M)), gflops_M)
        drawn = read.draw(todo.store, task, train, classes, [given.shots], given.seeds)
        for draw in drawn.draws:
            problem = cross_fit.shots_of(views, train.labels_N, draw.rows_K, draw.seed)
            support = cross_fit.support(head, problem, FOLDS)
            cascade = fit_cascade(support, given.fuser, settings, order, gflops_M, target, FOLDS)
            full_NC = fuse.apply(cascade.states[-1], logits_NMC, test.embeddings)
            some_NC, stage_N = apply_cascade(cascade, logits_NMC, test.embeddings)
            right = [(p.argmax(1) == test.labels_N).double() for p in (full_NC, some_NC)]
            cost = torch.tensor(cascade.gflops)[stage_N].mean() / cascade.gflops[-1]
            yield {
                "dataset": task.dataset,
                "images": len(support.labels_K),
                "test": len(test.labels_N),
                "full": float(right[0].mean()),
                "cascade": float(right[1].mean()),
                "saved": 1 - float(cost),
                "promised": cascade.promise.kept,
            }


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("datasets", nargs="+")
    parser.add_argument("--data-root", default="")
    parser.add_argument("--workspace", default="workspace/cascade")
    parser.add_argument("--fuser", default="c_log_avg")
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--limit", type=int, default=0)
    parser.add_argument("--drop", type=float, default=0.05)
    given = parser.parse_args()
    todo = steps.plan(campaign(given))
    steps.prepare(todo)
    steps.embed_images(todo)
    found: dict[str, list[dict]] = {}
    for row in rows(todo, given):
        found.setdefault(row["dataset"], []).append(row)
    print(
        "| data set | support, test images | full | cascade | drop, worst | kept | GFLOPs saved |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name, own in found.items():
        full, some, saved = (
            100 * np.array([r[k] for r in own]) for k in ("full", "cascade", "saved")
        )
        kept = sum(drop <= 100 * given.drop for drop in full - some)
        told = f"{kept} of {len(own)}" if all(r["promised"] for r in own) else "nothing promised"
        print(
            f"| {name} | {own[0]['images']}, {own[0]['test']} | {full.mean():.1f} | {some.mean():.1f} | "
            f"{(full - some).mean():.1f}, {(full - some).max():.1f} | {told} | {saved.mean():.0f} % |"
        )


if __name__ == "__main__":
    main()
