"""What actors of the pools do: each holds a backbone, and writes the file of every shard that passes."""

import pickle
import threading

import numpy as np
import pyarrow as pa

from clipray import backbones
from clipray.artefacts.embeddings import embedded
from clipray.config import Backbone
from clipray.encoding import encode, words
from clipray.steps.spent import timed
from clipray.steps.tally import failures_of
from clipray.store import Store


class Embedder:
    """One backbone in an actor of its pool. One thread computes at a time; meanwhile another one may write.

    A backbone that cannot be loaded, or that raises on every image of a shard, leaves no file and says why in the
    task; the shard goes on to the other backbones.
    """

    def __init__(
        self,
        store: Store,
        spec: Backbone,
        precision: str,
        device: str,
        batch_size: int,
        column: str,
        compiled: bool = False,
    ):
        self.store, self.spec, self.precision = store, spec, precision
        self.batch_size, self.column = batch_size, column
        self.encoder, self.broken, self.computing = None, None, threading.Lock()
        try:
            self.encoder = self.load(device, batch_size if compiled else 0)
        except Exception as error:
            self.broken = f"it cannot be loaded: {words(error)}"

    def load(self, device: str, compiled: int) -> backbones.Encoder:
        """Load the model."""
        return backbones.load(self.spec, self.precision, device, compiled)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Embed one shard, write its file, pass the shard on."""
        task = pickle.loads(table["task"][0].as_py())
        if self.spec.name in task["todo"]:
            with timed(task, self.spec.name):
                reason = self.broken or self.embed(task, table)
            if reason:
                task["broken"][self.spec.name] = reason
            told = pa.array([pickle.dumps(task)], pa.large_binary())
            table = table.set_column(table.column_names.index("task"), "task", told)
        return table

    def embed(self, task: dict, table: pa.Table) -> str | None:
        """Write one shard's file; return why there is none, or None."""
        size = (*self.encoder.preprocess.size, 3)
        crops_NHWC = np.frombuffer(table[self.column][0].as_buffer(), np.uint8).reshape(-1, *size)
        with self.computing:
            embeddings_ND, errors = encode(self.encoder, crops_NHWC, self.batch_size)
        if errors and all(errors):
            return f"it fails on images: {errors[0]}"
        rows = with_errors(task["rows"], errors)
        kept = [error is None for error in errors]
        part = embedded(rows, embeddings_ND[kept], self.encoder.dim, self.precision)
        self.store.write_table(task["places"][self.spec.name], part)
        task["errors"][self.spec.name] = failures_of(part)
        task["written"] = task.get("written", 0) + part.nbytes
        return None


def with_errors(rows: pa.Table, errors: list[str | None]) -> pa.Table:
    """Fill one backbone's errors into the rows of a shard, where the image itself has none."""
    own = iter(errors)
    every = [known or next(own) for known in rows["error"].to_pylist()]
    place = rows.column_names.index("error")
    return rows.set_column(place, "error", pa.array(every, pa.string()))
