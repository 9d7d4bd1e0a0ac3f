"""Pictures that stand twice in a set: planted ones are found, among pairs that only one backbone holds for alike."""

import numpy as np
import pyarrow as pa
import pytest

from clipray.artefacts.embeddings import embedded
from clipray.steps.publish import alike
from clipray.store import Store


def unit(view_ND: np.ndarray) -> np.ndarray:
    return (view_ND / np.linalg.norm(view_ND, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def views() -> list[np.ndarray]:
    """3,000 random rows to two backbones; (5, 2200) and (2999, 8) are alike to both, (7, 100) to the first alone."""
    random = np.random.default_rng(0)
    views = [random.normal(size=(3000, dim)) for dim in (48, 64)]
    for view in views:
        view[2200] = view[5] + 0.05 * random.normal(size=view.shape[1])
        view[2999] = view[8] + 0.1 * random.normal(size=view.shape[1])
    views[0][100] = views[0][7]
    return [unit(view) for view in views]


def test_planted_pairs_are_found_and_all_backbones_must_agree(views):
    found = alike.pairs(views)
    assert [(one.first, one.second) for one in found] == [(5, 2200), (8, 2999)]
    slow = [min(float(view[a] @ view[b]) for view in views) for a, b, _ in found]
    assert [one.cosine for one in found] == pytest.approx(slow, abs=1e-6)
    assert (7, 100) in [(one.first, one.second) for one in alike.pairs(views[:1])]


def test_each_image_stands_in_one_pair():
    rows = unit(np.array([[1, 0.0], [1, 0.001], [1, 0.002], [0, 1]]))
    assert len(alike.pairs([rows])) == 1
    assert alike.pairs([rows[:1]]) == []


def test_they_are_read_by_id_and_equal_bytes_are_left_out(views, tmp_path):
    store = Store(str(tmp_path))
    ids = [f"{n:032x}" for n in range(len(views[0]))]
    ids[6] = f"{ids[5]}.1"  # the same bytes as 5, which sorts behind it
    views[0][6], views[1][6] = views[0][5], views[1][5]
    order = np.random.default_rng(1).permutation(len(ids))
    rows = pa.table({"image_id": ids, "label": [0] * len(ids)})
    rows = rows.append_column("error", pa.array([None] * len(ids), pa.string()))
    for name, view in zip("ab", views, strict=True):
        table = embedded(rows.take(order), view[order], view.shape[1], "fp32")
        store.write_table(f"{name}/0.parquet", table)
        store.finish(name, {}, shards=["0.parquet"])
    found = alike.of_dataset(store, {"a": "a", "b": "b"}, ["b", "a"], ids)
    assert [(one.first, one.second) for one in found] == [(5, 2200), (8, 2999)]
