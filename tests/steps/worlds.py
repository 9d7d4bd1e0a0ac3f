"""Datasets with known answers: what embedding them would have left in a store."""

import dataclasses
import shutil

import numpy as np
import pyarrow as pa

from clipray import schema
from clipray.artefacts import evaluations as evaluate
from clipray.config import Fuser
from clipray.steps.checks import REFERENCE
from clipray.steps.evaluate import plan
from clipray.store import Store

CLASSES, DIM = 4, 8
BACKBONES = ("alpha", "beta", "gamma")


class World:
    """Three backbones that see noisy class vectors; a store that holds what embedding them would have left."""

    def __init__(self, root, seed: int = 0, train: int = 40, test: int = 60):
        rng = np.random.default_rng(seed)
        self.store = Store(str(root))
        self.weights = {name: unit(rng.normal(size=(CLASSES, DIM))) for name in BACKBONES}
        self.ids = {
            split: [f"{split}{i:03d}" for i in range(n)]
            for split, n in (("train", train), ("test", test))
        }
        self.labels = {split: rng.integers(0, CLASSES, len(ids)) for split, ids in self.ids.items()}
        for c in range(CLASSES):  # every class is there
            self.labels["train"][c * 4 : c * 4 + 4] = c
        self.embeddings = {
            (split, name): self.weights[name][labels] + 0.7 * rng.normal(size=(len(labels), DIM))
            for split, labels in self.labels.items()
            for name in BACKBONES
        }
        self.errors: dict[tuple[str, str], str] = {}

    def task(
        self, names=BACKBONES, heads=("zero_shot",), fusers=("log_avg", "c_log_avg"), shots=(1, 4)
    ):
        """Write everything, and return what `evaluate` takes."""
        for name in names:
            weights = pa.FixedSizeListArray.from_arrays(
                pa.array(self.weights[name].astype(np.float32).ravel()), DIM
            )
            self.store.write_table(
                f"c-{name}/classifier.parquet",
                pa.table({"name": ["x"] * CLASSES, "weight": weights}),
            )
            self.store.finish(f"c-{name}", {})
            for split in self.ids:
                self.write(split, name)
        entries = (REFERENCE, *fusers)
        return evaluate.Task(
            dataset="made",
            backbones=names,
            classifiers=tuple(f"c-{name}" for name in names),
            scales=((10.0, 0.0),) * len(names),
            embeddings={split: tuple(f"e-{split}-{name}" for name in names) for split in self.ids},
            expected=len(self.ids["test"]),
            heads=heads,
            fusers=tuple(f if isinstance(f, Fuser) else Fuser(name=f, fuser=f) for f in entries),
            shots=shots,
            seeds=2,
            folds=5,
        )

    def write(self, split: str, name: str) -> None:
        ids, labels = self.ids[split], self.labels[split]
        errors = [self.errors.get((split, image_id)) for image_id in ids]
        values = pa.array(self.embeddings[split, name].astype(np.float32).ravel())
        table = pa.table(
            [
                ids,
                labels,
                pa.FixedSizeListArray.from_arrays(values, DIM),
                pa.array(errors, pa.string()),
            ],
            schema=schema.embeddings(DIM, "fp32"),
        )
        order = np.random.default_rng(len(name)).permutation(
            len(ids)
        )  # backbones store rows in different orders
        self.store.write_table(f"e-{split}-{name}/all.parquet", table.take(order))
        self.store.finish(f"e-{split}-{name}", {}, shards=["all.parquet"])

    def frames(self, task):
        place = evaluate.address(self.store, task)
        plan.evaluate(self.store, task, place)
        return [
            self.store.read_table(f"{place}/{n}").to_pandas()
            for n in (evaluate.SCORES, evaluate.OUTCOMES)
        ]


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


class Shelf(World):
    """A world whose artefacts have the dataset's name in theirs, in a store that worlds share."""

    def __init__(self, store: Store, name: str, seed: int):
        super().__init__(store.uri, seed, train=60)
        self.name = name

    def task(self, **options):
        return renamed(super().task(**options), self)


def renamed(task, world):
    """The task under the dataset's own name, its artefacts moved to places of their own."""
    places = {}
    for place in [*task.classifiers, *task.embeddings["train"], *task.embeddings["test"]]:
        places[place] = f"{world.name}-{place}"
        shutil.copytree(
            world.store.place(place), world.store.place(places[place]), dirs_exist_ok=True
        )
    return dataclasses.replace(
        task,
        dataset=world.name,
        classifiers=tuple(places[p] for p in task.classifiers),
        embeddings={
            split: tuple(places[p] for p in found) for split, found in task.embeddings.items()
        },
    )
