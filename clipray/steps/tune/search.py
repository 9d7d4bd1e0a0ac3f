"""Choose settings of fusers and heads on cached embeddings: many datasets in parallel, as trials of Ray Tune.

What a configuration is scored on never is a test image: images inside the support set (`per_dataset`), or the rest of
the train splits of other datasets (`leave_one_dataset_out`) or of all (`universal`).
"""

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from clipray.artefacts.evaluations import Task
from clipray.config import Campaign, Inputs
from clipray.config.search import Tune
from clipray.errors import ConfigError
from clipray.progress import board, progress
from clipray.steps import campaign as run
from clipray.steps import cluster, evaluations
from clipray.steps.todo import require_all
from clipray.steps.tune import held_out as heldout
from clipray.steps.tune import space as spaces
from clipray.steps.tune.records import Cell, Records
from clipray.steps.tune.studies import Study, adaptive, scopes
from clipray.store import Store


@dataclass
class Search:
    """A search as it stands: what it may use, what was fitted, and what its studies tried."""

    config: Tune
    store: Store
    tasks: list[Task]
    records: Records
    skipped: list[dict]  # support sets that cannot be used, with the reason
    fits: dict[Cell, int] = field(
        default_factory=dict
    )  # by support set, of one configuration: one for each fold
    studies: dict[tuple[str, tuple], Study] = field(default_factory=dict)  # by search and scope
    problems: dict[str, Any] = field(
        default_factory=dict
    )  # by dataset, the object reference of its `Problem`
    counts: Any = None  # `sweep.Counts` of the last run
    cut: str = ""  # the budget that ended it

    @property
    def cells(self) -> list[Cell]:
        """All support sets in use."""
        return list(self.fits)


def campaign(config: Tune) -> Campaign:
    """The campaign that makes the embeddings which a search needs."""
    shared = {name: getattr(config, name) for name in Inputs.model_fields}
    return Campaign(
        **shared, heads=tuple(dict.fromkeys(search.head for search in config.searches)), fusers=()
    )


def whole(config: Tune) -> bool:
    """Whether a search looks at images of train splits outside the support sets."""
    return config.selection != heldout.INSIDE


def prepare(config: Tune, verbose: bool, forget: bool = False) -> Search:
    """Embed what is missing, draw the support sets, and read what is recorded.

    Args:
        forget: try again what failed before.

    Raises:
        ConfigError: an impossible search, or no dataset with a train split.
    """
    spaces.check(config)
    todo = run.plan(campaign(config), verbose, whole=whole(config))
    run.prepare(todo)
    run.embed_images(todo)
    require_all(todo)
    tasks = [task for task in evaluations.tasks(todo) if "train" in task.embeddings]
    if not tasks:
        raise ConfigError(
            "datasets: none has a train split, and there is nothing else to choose settings on"
        )
    if config.selection == "leave_one_dataset_out" and len(tasks) < 2:
        raise ConfigError(
            "selection: leave_one_dataset_out needs two datasets with a train split or more"
        )
    skipped = [
        {"dataset": d.name, "reason": "no train split"}
        for d in todo.datasets
        if "train" not in d.splits
    ]
    return begin(config, todo.store, tasks, skipped, verbose, forget)


def begin(
    config: Tune,
    store: Store,
    tasks: list[Task],
    skipped: list[dict],
    verbose: bool = False,
    forget: bool = False,
) -> Search:
    """Draw the support sets of datasets whose embeddings are there, and read what is recorded."""
    records = Records(
        store,
        store.address("tuning", "fits", what={"code": heldout.code()}),
        heldout.sources(tasks, config),
        forget,
    )
    search = Search(config, store, tasks, records, skipped)
    places = {task.dataset: heldout.address(store, task, config) for task in tasks}
    _load(search, [task for task in tasks if store.manifest(places[task.dataset]) is None], verbose)
    for name, place in places.items():
        listed = store.manifest(place)
        search.fits |= {Cell(name, shots, seed): parts for shots, seed, parts in listed["cells"]}
        search.skipped += [{"dataset": name, **one} for one in listed["skipped"]]
    if not search.fits:
        raise ConfigError(
            f"no support set can be used: {search.skipped[0]['reason']} ({len(search.skipped)} of them)"
        )
    for one in config.searches:
        for scope, cells in (
            scopes(config, search.cells).items() if adaptive(config) else (((), search.cells),)
        ):
            search.studies[one.name, scope] = Study(one, config, cells, records)
    return search


def _load(search: Search, tasks: list[Task], verbose: bool) -> None:
    """Let Ray tasks draw the problems of some datasets; the cluster's object store keeps them."""
    if not tasks:
        return
    import ray

    config, store = search.config, search.store
    cluster.connect(config.compute, verbose)
    draw = ray.remote(num_cpus=1, num_returns=2, max_retries=config.compute.max_retries)(
        heldout.prepare
    )
    lists = {}
    for task in tasks:
        search.problems[task.dataset], done = draw.remote(
            store, heldout.address(store, task, config), task, config
        )
        lists[done] = task.dataset
    with progress("support sets", len(lists), "datasets") as advance:
        left = list(lists)
        while left:
            (done,), left = ray.wait(left, num_returns=1)
            ray.get(done)  # raises what the task raised
            advance(1)


def fit(search: Search, verbose: bool) -> None:
    """Fit what the studies ask for and the records lack."""
    from clipray.steps.tune.sweep import Reasons, Sweep

    reasons = Reasons()
    sweep = Sweep(list(search.studies.values()), search.records, search.config, reasons)
    search.counts = sweep.counts
    if sweep.ready:
        try:
            with shown(sweep, search) as show:
                _load(
                    search,
                    [task for task in search.tasks if task.dataset not in search.problems],
                    verbose,
                )
                _trials(sweep, reasons, search, show)
        finally:
            search.records.flush()
    search.cut = sweep.cut
    search.records.flush()


def _trials(sweep: Any, reasons: Any, search: Search, show: Any) -> None:
    """Run Ray Tune until the sweep has nothing more to ask; its own files are thrown away."""
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1000000000")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    from ray import tune

    from clipray.steps.tune.trial import Trial

    class Shown(tune.Callback):
        def on_step_end(self, iteration: int, trials: list, **info: Any) -> None:
            sweep.counts.running = sum(trial.status == "RUNNING" for trial in trials)
            show()

    config = search.config
    with tempfile.TemporaryDirectory() as place:
        tune.run(
            tune.with_parameters(
                Trial, problems=search.problems, threads=max(1, int(config.trial_cpus))
            ),
            name="clipray",
            resources_per_trial={"cpu": config.trial_cpus},
            num_samples=-1,
            search_alg=sweep,
            scheduler=reasons,
            stop=sweep,
            max_concurrent_trials=config.max_concurrent_trials or None,
            reuse_actors=True,
            raise_on_failed_trial=False,
            storage_path=place,
            callbacks=[Shown()],
            verbose=0,
        )


@contextlib.contextmanager
def shown(sweep: Any, search: Search) -> Iterator[Any]:
    """Progress: fits done, running and failed, the time left, and the best score so far of each dataset."""
    start, counts, name = time.monotonic(), sweep.counts, search.config.metric
    parts = sum(search.fits.values()) / len(search.fits)

    def numbers() -> tuple[float, str]:
        spent = time.monotonic() - start
        pace = counts.done / spent
        left = max(0, counts.total - counts.known - counts.done) / pace if pace else float("inf")
        return pace * parts, "?" if left == float("inf") else f"{left / 60:.0f} min"

    def line() -> str:
        pace, left = numbers()
        return (
            f"tune: {counts.known + counts.done}/{counts.total} fits ({counts.known} known, {counts.failed} failed), "
            f"{counts.running} trials running, {pace:.1f} fits/s, {left} left"
        )

    def rows() -> list[list[str]]:
        best = [[sweep.best.get((one.name, d)) for one in search.config.searches] for d in datasets]
        return [
            [d, *("" if v is None else f"{v:.4f}" for v in values)]
            for d, values in zip(datasets, best, strict=True)
        ]

    datasets = list(dict.fromkeys(cell.dataset for cell in search.cells))
    with board(
        line, ["dataset", *(f"best {name}, {one.name}" for one in search.config.searches)], rows
    ) as show:
        yield show


def over_budget(search: Search) -> bool:
    """Whether more fits failed than the config allows."""
    failed, budget = search.counts.failed, search.config.error_budget
    whole = search.counts.known + search.counts.done
    return failed > (budget * whole if budget < 1 else budget)
