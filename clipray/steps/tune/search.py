"""Choose settings of fusers and heads on cached embeddings: many datasets in parallel, as trials of Ray Tune.

What a configuration is scored on never is a test image: images inside the support set (`per_dataset`), or the rest of
the train splits of other datasets (`leave_one_dataset_out`) or of all (`universal`).
"""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
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
    counts: Any = None  # the `sweep.Sweep` of the last run
    cut: str = ""  # the budget that ended it

    @property
    def cells(self) -> list[Cell]:
        """List all support sets in use."""
        return list(self.fits)


def campaign(config: Tune) -> Campaign:
    """Make the campaign of the embeddings which a search needs."""
    shared = {name: getattr(config, name) for name in Inputs.model_fields}
    return Campaign(
        **shared, heads=tuple(dict.fromkeys(search.head for search in config.searches)), fusers=()
    )


def whole(config: Tune) -> bool:
    """Tell whether a search looks at images of train splits outside the support sets."""
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
    from clipray.steps.tune.sweep import Sweep

    studies = list(search.studies.values())
    sweep = search.counts = Sweep(search.records, search.config, search.cells)
    waves = sweep.waves(studies)
    try:
        if first := next(waves, None):
            with shown(sweep, search) as sweep.show:
                left = [task for task in search.tasks if task.dataset not in search.problems]
                _load(search, left, verbose)
                sweep.run(itertools.chain([first], waves), search.problems)
    finally:
        search.records.flush()
    for study in studies:
        study.tell()
    search.cut = sweep.cut


@contextlib.contextmanager
def shown(sweep: Any, search: Search) -> Iterator[Callable[[], None]]:
    """Show progress: fits done, running and failed, the time left, and the best score so far of each dataset."""
    start, name = time.monotonic(), search.config.metric
    parts = sum(search.fits.values()) / len(search.fits)
    total = sum((study.samples + 1) * len(study.cells) for study in search.studies.values())
    searches = [one.name for one in search.config.searches]
    datasets = list(dict.fromkeys(cell.dataset for cell in search.cells))

    def line() -> str:
        ended, pace = len(sweep.ends), sweep.done / (time.monotonic() - start)
        left = f"{max(0, total - ended) / pace / 60:.0f} min" if pace else "?"
        return (
            f"tune: {ended}/{total} fits ({sweep.known} known, {sweep.failed} failed), "
            f"{sweep.running} trials running, {pace * parts:.1f} fits/s, at most {left} left"
        )

    def rows() -> list[list[str]]:
        best = {place: f"{value:.4f}" for place, value in list(sweep.best.items())}
        return [
            [dataset, *(best.get((one, dataset), "") for one in searches)] for dataset in datasets
        ]

    columns = ["dataset", *(f"best {name}, {one}" for one in searches)]
    with board(line, columns, rows) as show:
        yield show


def over_budget(search: Search) -> bool:
    """Tell whether more fits failed than the config allows."""
    failed, budget = search.counts.failed, search.config.error_budget
    whole = search.counts.known + search.counts.done
    return failed > (budget * whole if budget < 1 else budget)
