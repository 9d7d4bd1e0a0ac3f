"""What Ray Tune costs: a search as clipray runs it, against one trial per fit and against a plain loop.

    python benchmarks/tune.py [configurations]

Made-up datasets (five backbones of 128 dimensions, 10 classes, 1 shot, 3 seeds), `nlc` with a short training, so that
what is not fitting shows. The same fits by each: the plain loop fits and scores one after another in this process, on
one thread; the others use all the machine's cores, start-up left out (a first trial of each is not counted). Prints
fits per second, and seconds per fit and core beyond the loop's.
"""

import os
import sys
import tempfile
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import ray
import torch
from ray import tune

from clipray.config import parse
from clipray.config.search import Tune
from clipray.steps import cluster
from clipray.steps.tune import held_out as heldout
from clipray.steps.tune.records import Cell, Records
from clipray.steps.tune.studies import Study
from clipray.steps.tune.sweep import Sweep
from clipray.steps.tune.trial import Piece, cases_of, measure
from clipray.store import Store

DATASETS, SEEDS, CLASSES, DIM, BACKBONES, HELD = 10, 3, 10, 128, 5, 200


def made(name: str, seed: int) -> heldout.Problem:
    """A dataset of random embeddings around its class vectors."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.tile(np.arange(CLASSES), SEEDS), rng.integers(0, CLASSES, HELD)])
    weights = tuple(rng.normal(size=(CLASSES, DIM)).astype(np.float32) for _ in range(BACKBONES))
    embeddings = tuple(
        (w[labels] + rng.normal(size=(len(labels), DIM))).astype(np.float32) for w in weights
    )
    held = np.arange(SEEDS * CLASSES, len(labels))
    parts = {
        Cell(name, 1, s): [(np.arange(s * CLASSES, (s + 1) * CLASSES), held)] for s in range(SEEDS)
    }
    return heldout.Problem(embeddings, labels, weights, ((10.0, 0.0),) * BACKBONES, parts, 5)


def configuration(samples: int) -> Tune:
    """The search: rates of a short training."""
    values = {
        "workspace": "unused",
        "datasets": ["made"],
        "backbones": ["made"],
        "precision": "fp32",
        "shots": [1],
        "seeds": SEEDS,
        "searches": [
            {
                "name": "s",
                "fuser": "nlc",
                "settings": {"epochs": 30},
                "space": {"rate": {"loguniform": [1e-4, 1e-2]}},
            }
        ],
        "selection": "universal",
        "metric": "nll",
        "sampler": "random",
        "samples": samples,
    }
    return parse(Tune, values, "benchmark")


def loop(problems: dict, configurations: list) -> float:
    """Seconds of fitting and scoring one support set after another, in this process."""
    start = time.perf_counter()
    for one in configurations:
        for problem in problems.values():
            for cell in problem.parts:
                piece = Piece(one, (cell,), 1, 0)
                list(measure(piece, lambda dataset, *key: cases_of(problems[dataset], *key)))
    return time.perf_counter() - start


class Clock(tune.Callback):
    """Takes the time of each trial's end."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_trial_complete(
        self, iteration: int, trials: list, trial: object, **info: object
    ) -> None:
        """One more."""
        self.ends.append(time.perf_counter())

    def seconds(self) -> float:
        """From the first finished trial to the last, and as much for the first."""
        ends = self.ends
        return (ends[-1] - ends[0]) / (len(ends) - 1) * len(ends)


def ours(config: Tune, refs: dict, cells: list) -> tuple[float, list]:
    """Seconds of clipray's own way, and the configurations that it tried."""
    clock = Clock()

    class Timed(Sweep):
        def on_trial_complete(self, **info: object) -> None:
            super().on_trial_complete(**info)
            clock.on_trial_complete(**info)

    with tempfile.TemporaryDirectory() as place:
        records = Records(Store(place), "fits", dict.fromkeys(refs, "x"))
        study = Study(config.searches[0], config, cells, records)
        sweep = Timed(records, config, cells, show=lambda: None)
        sweep.run(sweep.waves([study]), refs)
        return clock.seconds(), list(study.drawn)


def one_trial_per_fit(refs: dict, pieces: list, reuse: bool) -> float:
    """Seconds of the way that Tune's tutorials show, for some of the fits; new actors, or used again."""

    def trainable(config: dict) -> None:
        torch.set_num_threads(1)
        problem = ray.get(refs[config["piece"].cells[0].dataset])
        ((row,),) = measure(config["piece"], lambda dataset, *key: cases_of(problem, *key))
        tune.report({"nll": row.nll})

    clock = Clock()
    with tempfile.TemporaryDirectory() as place:
        tune.Tuner(
            tune.with_resources(trainable, {"cpu": 1}),
            param_space={"piece": tune.grid_search(pieces)},
            tune_config=tune.TuneConfig(reuse_actors=reuse),
            run_config=tune.RunConfig(storage_path=place, callbacks=[clock], verbose=0),
        ).fit()
    return clock.seconds()


def main() -> None:
    """Print the table."""
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    samples = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    torch.set_num_threads(1)
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    cluster.quiet()
    cores = int(ray.cluster_resources()["CPU"])
    problems = {f"made{i}": made(f"made{i}", i) for i in range(DATASETS)}
    refs = {name: ray.put(problem) for name, problem in problems.items()}
    cells = [cell for problem in problems.values() for cell in problem.parts]
    seconds, tried = ours(configuration(samples), refs, cells)
    pieces = [Piece(one, (cell,), 1, 0) for one in tried for cell in cells]
    some = pieces[:: max(1, len(pieces) // 30)][:30]
    loop(problems, tried[:1])
    figures = {
        "plain loop, one core": (loop(problems, tried), len(pieces), 1),
        f"clipray, {cores} cores": (seconds, len(pieces), cores),
        f"one trial per fit, {cores} cores": (
            one_trial_per_fit(refs, some, False),
            len(some),
            cores,
        ),
        "  the same, actors reused": (one_trial_per_fit(refs, some, True), len(some), cores),
    }
    floor = next(iter(figures.values()))[0] / len(pieces)
    print(f"{len(pieces)} fits (one trial per fit: {len(some)} of them)")
    for name, (spent, fits, used) in figures.items():
        beyond = spent * used / fits - floor
        print(
            f"{name:32} {fits / spent:9.1f} fits/s   {beyond:+.4f} core-seconds per fit beyond the loop's {floor:.4f}"
        )


if __name__ == "__main__":
    main()
