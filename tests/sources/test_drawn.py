"""The sets that need no download."""

import numpy as np

from clipray import images, sources
from clipray.config import Dataset
from tests.sources.made import whole


def test_drawn_sets_are_the_same_in_any_cut():
    from clipray.sources.drawings import DRAWINGS

    assert len(DRAWINGS) >= 5
    for name, drawing in DRAWINGS.items():
        given = Dataset(name=name, format="drawn", uri=name, options={"test": 60, "train": 3})
        (chunk,) = sources.listing(given, "test", "")
        table = whole([chunk])
        assert len(set(table["image_id"].to_pylist())) == 60
        assert table["label"].to_pylist() == [n % len(drawing.classes) for n in range(60)]
        (late,) = sources.fetch(chunk, table.slice(41, 1))
        (alone,) = sources.scan(chunk._replace(start=41, count=1))
        assert alone.data == late
        (train,) = sources.listing(given, "train", "")
        other = sources.listing(given.model_copy(update={"options": {"seed": 1}}), "test", "")[0]
        firsts = [next(sources.scan(each)).data for each in (chunk, train, other)]
        assert len(set(firsts)) == 3
        assert all(images.decode(data).size == (48, 48) for data in firsts)


def test_bundled_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    digits = load_digits()
    given = Dataset(name="digits", format="sklearn", uri="digits")
    for split, start in (("train", 0), ("test", 1197)):
        (chunk,) = sources.listing(given, split, "")
        found = list(sources.scan(chunk))
        assert [sample.label for sample in found] == digits.target[start : start + 600].tolist()
        ink = np.asarray(images.decode(found[7].data))[..., 0] / 255 * 16
        assert np.abs(ink - digits.images[start + 7]).max() < 0.05
