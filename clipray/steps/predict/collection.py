"""A collection that teaches the model which labels it: learn from sums over its shards, then label them.

The driver sees sums, whose size is that of the model, and never a row. What is learned is kept as a fused model of its
own beside the one that it started from; it labels single images too.
"""

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from clipray import fingerprint
from clipray.artefacts import fused_model
from clipray.artefacts.index import shard_rows
from clipray.config import Compute
from clipray.progress import say, working
from clipray.steps import cluster
from clipray.store import Store, provenance

if TYPE_CHECKING:
    from clipray.fusion import Fusion
    from clipray.steps.predict.sums import Collection

TASK_SHARDS = 64  # shards that a task looks at, at most
TASKS = 8  # at least, where there are as many shards
LEARN = "clipray.steps.predict.sums:sums"


def learns(about: dict[str, Any]) -> bool:
    """Whether a model's fuser is one that the images to be labelled teach."""
    return about["fuser"]["state"]["settings"].get("unlabelled") == "batch"


def ranges(shards: int) -> list[tuple[int, int]]:
    """Ranges of shards, one a task.

    >>> ranges(3), len(ranges(100)), ranges(1000)[0]
    ([(0, 1), (1, 2), (2, 3)], 8, (0, 64))
    """
    size = max(1, min(TASK_SHARDS, -(-shards // TASKS)))
    return [(start, min(start + size, shards)) for start in range(0, shards, size)]


def taught(
    store: Store,
    model: str,
    fusion: "Fusion",
    images: "Collection",
    compute: Compute,
    verbose: bool,
) -> str:
    """The address of the model that the collection has taught; it learns where there is none yet."""
    what = {
        "model": fusion.digest,
        "embeddings": images.places,
        "code": fingerprint.code(LEARN, keep),
    }
    place = fused_model.address(store, f"{fusion.name}-taught", what)
    if store.manifest(place) is not None:
        return place
    from clipray.steps.predict import sums

    cluster.connect(compute, verbose)
    parts = ranges(sum(1 for _ in images.index.shards(shard_rows(images.index))))

    def over_all(of: Any) -> tuple:
        import ray

        shared = ray.put(of)
        given = [(model, images, *part, shared) for part in parts]
        found = dict(cluster.tasks(sums.sums, given, 1, 0, compute.max_retries))
        return sums.added(found[number] for number in range(len(parts)))

    with working(f"learning from {len(images.index)} images"):
        keep(store, place, what, fusion, over_all)
    return place


def keep(store: Store, place: str, what: dict, fusion: "Fusion", over_all: Any) -> None:
    """Learn, and write the model as it is then.

    Args:
        over_all: `fusers.transductive.Sums` over the collection.
    """
    from clipray.numerics.fusers import to_parts

    state = fusion.taught(over_all)
    own, mapping = to_parts(state)
    about = {key: value for key, value in fusion.about.items() if key != "format"}
    about["fuser"] = about["fuser"] | {"state": mapping}
    about["provenance"] = provenance()
    about["figures"] = {}  # those of before are of another model
    tensors = {
        name: value for name, value in fusion.tensors.items() if not name.startswith("fuser/")
    }
    tensors |= {f"fuser/{name}": tensor.numpy() for name, tensor in own.items()}
    told = {key: state.numbers[key] for key in ("reliability", "trust") if key in state.numbers}
    say(", ".join(f"{key} {value:.3f}" for key, value in told.items()))
    fused_model.write(store, place, what, about, tensors, _files(fusion.path))


def _files(folder: str) -> dict[str, str]:
    """The backbones' files of a model's folder, by their names below `weights/`."""
    from pathlib import Path

    root = Path(folder, fused_model.WEIGHTS)
    files = [file for file in root.rglob("*") if file.is_file()]
    return {file.relative_to(root).as_posix(): str(file) for file in files}


def label(
    model: str,
    images: "Collection",
    place: str,
    wanted: tuple[str, ...],
    targets: bool,
    compute: Compute,
    verbose: bool,
) -> Iterator[int]:
    """Write the predictions of the shards that lack them; yields numbers of images as they are done."""
    from clipray.steps.predict import sums

    if not wanted:
        return
    cluster.connect(compute, verbose)
    names = [shard.name for shard in images.index.shards(shard_rows(images.index))]
    given = []
    for start, stop in ranges(len(names)):
        own = sorted(set(names[start:stop]) & set(wanted))
        if own:
            given.append((model, images, start, stop, place, own, targets))
    task = partial(cluster.tasks, sums.label, given, 1, 0, compute.max_retries)
    for _, done in task():
        yield done
