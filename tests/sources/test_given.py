"""Given matrices and columns: every kind of file gives the same numbers, and what is wrong is one sentence."""

import pickle

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from clipray.errors import ConfigError
from clipray.sources import given

ROWS = np.random.default_rng(0).normal(size=(37, 5)).astype(np.float16)  # bfloat16 rounds them


def lists(values):
    flat = pa.array(np.ascontiguousarray(values).ravel())
    return pa.table({"vector": pa.FixedSizeListArray.from_arrays(flat, values.shape[1])})


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path, kind, order):
    values = np.asarray(ROWS, kind, order=order)
    np.save(tmp_path / "a.npy", values)
    np.savez(tmp_path / "a.npz", image=values, other=values[:3])
    save_file({"image": torch.from_numpy(values.copy(order="C"))}, tmp_path / "a.safetensors")
    torch.save(torch.from_numpy(values), tmp_path / "a.pt")
    torch.save({"image": torch.from_numpy(values), "epoch": 3}, tmp_path / "b.pt")
    pq.write_table(lists(values), tmp_path / "a.parquet", row_group_size=10)
    names = ["a.npy", "a.npz#image", "a.safetensors", "a.pt", "b.pt#image", "a.parquet#vector"]
    digests = set()
    for name in names:
        matrix = given.matrix(name, str(tmp_path), "")
        rows = np.array([36, 0, 7])
        assert (len(matrix), matrix.width, matrix.half) == (37, 5, kind is np.float16)
        np.testing.assert_array_equal(matrix.take(rows), ROWS[rows].astype(np.float32))
        digests.add(matrix.digest())
    assert len(digests) == 1


def test_bfloat16_is_read_as_torch_reads_it(tmp_path):
    rounded = torch.from_numpy(ROWS).to(torch.bfloat16)
    save_file({"image": rounded}, tmp_path / "a.safetensors")
    torch.save(rounded, tmp_path / "a.pt")
    for name in ("a.safetensors", "a.pt"):
        found = given.matrix(name, str(tmp_path), "").take(np.arange(37))
        np.testing.assert_array_equal(found, rounded.float().numpy())


def test_parts_come_in_the_order_of_their_numbers(tmp_path):
    (tmp_path / "img_emb").mkdir()
    for number in range(11):
        part = np.full((2, 3), number, np.float32)
        np.save(tmp_path / "img_emb" / f"img_emb_{number}.npy", part)
    matrix = given.matrix("img_emb/*.npy", str(tmp_path), "")
    rows = matrix.take(np.arange(22))[:, 0]
    assert rows.tolist() == np.repeat(np.arange(11), 2).tolist()
    assert np.concatenate(list(matrix.blocks()))[:, 0].tolist() == rows.tolist()


def test_labels_may_be_names_or_null(tmp_path):
    pq.write_table(pa.table({"label": ["b", None, "a"]}), tmp_path / "m.parquet")
    assert given.labels("m.parquet#label", str(tmp_path), "", ["a", "b"]) == [1, None, 0]
    with pytest.raises(ConfigError, match="row 0 has the label 'b', which is no class name"):
        given.labels("m.parquet#label", str(tmp_path), "", ["a", "c"])


def test_what_cannot_be_read_is_told_with_its_remedy(tmp_path):
    np.savez(tmp_path / "two.npz", image=ROWS, text=ROWS)
    np.save(tmp_path / "objects.npy", np.array([{}, 1], object), allow_pickle=True)
    np.save(tmp_path / "cube.npy", np.zeros((2, 2, 2)))
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY")
    (tmp_path / "cut.npz").write_bytes(b"PK\x03")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10")
    torch.save({"model": torch.nn.Linear(1, 1)}, tmp_path / "model.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps([1]))
    told = {
        "two.npz": "write two.npz#<key> with one of image, text",
        "two.npz#none": "there is no 'none'",
        "objects.npy": "Python objects",
        "cube.npy": "2×2×2",
        "cut.npy": "cannot be read",
        "cut.npz": "not whole",
        "cut.safetensors": "cannot be read",
        "model.pt": "more than tensors",
        "absent.npy": "is not there",
        "a.csv": "its kind is unknown",
        "none/*.npy": "no file fits this pattern",
    }
    for name, words in told.items():
        with pytest.raises(ConfigError, match=words.replace("*", r"\*")):
            given.matrix(name, str(tmp_path), "")
    with pytest.raises(ConfigError):
        given.matrix("plain.pt", str(tmp_path), "")


def test_a_bucket_is_read_as_a_folder_is(bucket, tmp_path):
    for name in ("e/x_0.npy", "e/x_1.npy"):
        np.save(tmp_path / "x.npy", ROWS)
        fsspec.filesystem("s3").put(str(tmp_path / "x.npy"), f"{bucket}/{name}")
    matrix = given.matrix("x_*.npy", f"{bucket}/e", "")
    np.testing.assert_array_equal(matrix.take(np.arange(37, 74)), ROWS.astype(np.float32))
