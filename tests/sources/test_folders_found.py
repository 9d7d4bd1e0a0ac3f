"""Image folders as they really lie about: odd names, junk, links, pipes, two spellings of one name, numbers."""

import os
import unicodedata
from collections import Counter
from pathlib import Path

import fsspec
import pytest

from clipray import catalog, sources
from clipray.config import Dataset
from clipray.errors import ConfigError
from tests.sources.made import dataset, picture, whole

AWKWARD = [
    *("a::b", "[x] y", "*", "?", "#", "p%20q", "it's", '"q"', "new\nline", "~tilde", "back\\slash"),
    *("a,b", " lead", "trail ", "s3:", "{c}", "é", "日本"),
]


def write(root: Path, paths: list[str], first: int = 0) -> dict[str, bytes]:
    made = {path: picture(first + number) for number, path in enumerate(paths)}
    for path, data in made.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return made


def scanned(given: Dataset, root: Path, split: str = "test") -> tuple[list, Counter]:
    left: Counter[str] = Counter()
    chunks = sources.listing(given, split, str(root))
    return [sample for chunk in chunks for sample in sources.scan(chunk, left)], left


@pytest.mark.parametrize("folder", AWKWARD)
def test_no_sign_in_a_path_is_a_protocol_or_a_pattern(tmp_path, folder):
    paths = [f"test/{name}/{file}.png" for name in AWKWARD for file in ("2020::01", "[1]?*#%41")]
    made = write(tmp_path / "root" / folder, paths)
    (found,) = catalog.datasets([folder], str(tmp_path / "root"))
    chunks = sources.listing(found, "test", str(tmp_path / "root"))
    table = whole(chunks)
    assert sorted(table["key"].to_pylist()) == sorted(
        path.removeprefix("test/").replace("\n", "\\n") for path in paths
    )
    by_key = {path.removeprefix("test/").replace("\n", "\\n"): data for path, data in made.items()}
    read = list(sources.fetch(chunks[0], table))
    assert read == [by_key[key] for key in table["key"].to_pylist()]


def test_patterns_may_stand_beside_folders_with_brackets(tmp_path):
    write(tmp_path, ["set [2020]/a/test/x/1.png", "set [2020]/b/test/x/1.png"])
    found = catalog.datasets(["set [2020]/*"], str(tmp_path))
    assert [each.uri for each in found] == ["set [2020]/a", "set [2020]/b"]


def test_a_file_name_that_is_not_utf8_is_read_and_shown_with_escapes(tmp_path):
    write(tmp_path / "set", ["test/a/1.png", "test/b/1.png"])
    odd = os.fsencode(tmp_path / "set" / "test" / "a") + b"/caf\xe9.png"
    with open(odd, "wb") as file:
        file.write(picture(7))
    chunks = sources.listing(dataset("folder", splits=["test"]), "test", str(tmp_path))
    table = whole(chunks)
    assert table["key"].to_pylist() == ["a/1.png", "a/caf\\udce9.png", "b/1.png"]
    assert list(sources.fetch(chunks[0], table))[1] == picture(7)
    before = sources.digest(chunks)
    os.utime(odd, (1, 1))
    again = sources.listing(dataset("folder", splits=["test"]), "test", str(tmp_path))
    assert sources.digest(again) != before


def test_a_class_folder_that_is_not_utf8_is_told(tmp_path):
    write(tmp_path / "set", ["test/a/1.png"])
    os.mkdir(os.fsencode(tmp_path / "set" / "test") + b"/caf\xe9")
    with pytest.raises(ConfigError, match=r"caf\\udce9 in .* not UTF-8"):
        sources.classnames(dataset("folder", splits=["test"]), str(tmp_path))
    os.rename(tmp_path / "set", os.fsencode(tmp_path) + b"/s\xe9t")
    with pytest.raises(ConfigError, match="not UTF-8"):
        catalog.datasets(["*"], str(tmp_path))


JUNK = {
    ".DS_Store": ["test/.DS_Store", "test/a/.DS_Store"],
    "._*": ["test/a/._1.png"],
    ".*": ["test/b/.hidden.png"],
    "Thumbs.db": ["test/a/Thumbs.db", "test/b/Thumbs.db"],
    "desktop.ini": ["test/a/desktop.ini"],
    "__MACOSX": ["test/__MACOSX/a/1.png"],
    "@eaDir": ["test/a/@eaDir/1.png"],
    "#recycle": ["test/#recycle/old.png"],
    ".ipynb_checkpoints": ["test/.ipynb_checkpoints/1.png"],
    "lost+found": ["test/lost+found/1.png"],
    "*.json": ["test/a/1.json", "test/a/1_stats.json"],
    "*.txt": ["test/a/1.txt"],
    "*.parquet": ["test/a/1.parquet"],
    "*.md": ["test/b/README.md"],
    "files outside class folders": ["test/stray.png"],
}


def test_junk_and_side_files_are_left_out_and_counted(tmp_path):
    images = ["test/a/1.png", "test/a/2", "test/b/x.y.JPG"]
    write(tmp_path / "set", [*images, *(path for paths in JUNK.values() for path in paths)])
    found, left = scanned(dataset("folder", splits=["test"]), tmp_path)
    assert [sample.key for sample in found] == [path.removeprefix("test/") for path in images]
    assert left == {kind: len(paths) for kind, paths in JUNK.items()}
    assert sources.classnames(dataset("folder", splits=["test"]), str(tmp_path)) == ["a", "b"]
    assert catalog.detect("set", str(tmp_path)).splits == {"test": "test"}
    write(tmp_path / "junk", ["test/__MACOSX/1.png"])
    assert catalog.detect("junk", str(tmp_path)) is None


def test_left_out_files_are_counted_in_a_bucket_too(bucket, tmp_path):
    write(
        tmp_path / "set", ["test/a/1.png", "test/a/1.json", "test/a/@eaDir/1.png", "test/b/2.png"]
    )
    fsspec.filesystem("s3").put(f"{tmp_path}/set", f"{bucket}/junk/", recursive=True)
    chunks = sources.listing(dataset("folder", splits=["test"]), "test", f"{bucket}/junk")
    tables = [sources.index(number, chunk) for number, chunk in enumerate(chunks)]
    assert sources.left_out(tables) == {"*.json": 1, "@eaDir": 1}
    assert [len(table) for table in tables] == [2]


@pytest.mark.parametrize("forms", ["NFC NFD", "NFD NFC", "NFD NFD", "NFC NFC"])
def test_two_spellings_of_one_name_are_one_class(tmp_path, forms):
    for split, form in zip(("train", "test"), forms.split(), strict=True):
        folders = [unicodedata.normalize(form, name) for name in ("café", "thé")]
        write(tmp_path / "set", [f"{split}/{name}/1.png" for name in (*folders, "bar")])
    assert sources.classnames(dataset("folder"), str(tmp_path)) == ["bar", "café", "thé"]
    for split in ("train", "test"):
        found, _ = scanned(dataset("folder"), tmp_path, split)
        assert [sample.label for sample in found] == [0, 1, 2]
    assert sources.remarks(dataset("folder"), str(tmp_path)) == []
    # both in one split: the images of both
    composed, apart = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    write(tmp_path / "set", [f"test/{composed}/8.png", f"test/{apart}/9.png"], first=50)
    found, _ = scanned(dataset("folder"), tmp_path)
    assert Counter(sample.label for sample in found) == {0: 1, 1: 3, 2: 1}


def test_classes_that_differ_in_case_only_are_remarked(tmp_path):
    write(tmp_path / "set", ["train/Red cat/1.png", "test/red_cat/1.png"])
    (text,) = sources.remarks(dataset("folder"), str(tmp_path))
    assert "'Red cat' and 'red_cat'" in text


def test_numbered_folders_are_in_the_order_of_their_numbers(tmp_path):
    write(tmp_path / "set", [f"test/{number}/1.png" for number in range(12)])
    given = dataset("folder", splits=["test"])
    found, _ = scanned(given, tmp_path)
    assert [(sample.key, sample.label) for sample in found] == [
        (f"{n}/1.png", n) for n in range(12)
    ]
    words = [
        "zero",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
    ]
    (tmp_path / "set" / "classnames.txt").write_text("\n".join(words))
    assert sources.classnames(given, str(tmp_path)) == words
    assert "0 = zero, 1 = one" in sources.remarks(given, str(tmp_path))[0]
    lexicographic = sorted(str(number) for number in range(12))
    (tmp_path / "set" / "classnames.txt").write_text("\n".join(lexicographic))
    with pytest.raises(ConfigError, match="in another order: 2 = 10"):
        sources.classnames(given, str(tmp_path))


def test_links_are_followed_and_what_they_lead_to_is_part_of_the_state(tmp_path):
    write(tmp_path, ["store/x/1", "store/y/1", "other/1.png"])
    folder = tmp_path / "set" / "test" / "a"
    folder.mkdir(parents=True)
    (folder / "linked.png").symlink_to("../../../store/x/1")
    (folder / "gone.png").symlink_to("nowhere.png")
    (folder / "self.png").symlink_to("self.png")
    (folder / "up").symlink_to("..")
    (tmp_path / "set" / "test" / "b").symlink_to(tmp_path / "other")
    given = dataset("folder", splits=["test"])

    def digest() -> str:
        return sources.digest(sources.listing(given, "test", str(tmp_path)))

    found, left = scanned(given, tmp_path)
    assert [(sample.key, bool(sample.error)) for sample in found] == [
        *(("a/gone.png", True), ("a/linked.png", False), ("a/self.png", True), ("b/1.png", False))
    ]
    assert left == {"links to a folder above them": 1}
    digests = [digest()]
    assert digest() == digests[0]
    (tmp_path / "store" / "x" / "1").write_bytes(picture(9) + b" ")  # the link stays
    digests.append(digest())
    same = tmp_path / "store" / "y" / "1"
    same.write_bytes((tmp_path / "store" / "x" / "1").read_bytes()[::-1])
    times = (tmp_path / "store" / "x" / "1").stat()
    os.utime(same, ns=(times.st_atime_ns, times.st_mtime_ns))
    (folder / "linked.png").unlink()
    (folder / "linked.png").symlink_to("../../../store/y/1")  # of equal size and time
    digests.append(digest())
    (folder / "gone.png").unlink()
    (folder / "gone.png").symlink_to(same)
    digests.append(digest())
    os.utime(tmp_path / "other" / "1.png", (1, 1))
    digests.append(digest())
    assert len(set(digests)) == len(digests)


def test_a_pipe_or_a_folder_in_place_of_a_file_is_an_error_row_and_never_waited_for(tmp_path):
    write(tmp_path / "set", ["test/a/1.png"])
    os.mkfifo(tmp_path / "set" / "test" / "a" / "pipe.png")
    found, _ = scanned(dataset("folder", splits=["test"]), tmp_path)
    assert found[1].error == "cannot be read: a folder, pipe or device, not a file"


@pytest.mark.parametrize(
    "pointer",
    [
        b"version https://git-lfs.github.com/spec/v1\noid sha256:abab\nsize 12345\n",
        b"/annex/objects/SHA256E-s12345--abab.png\n",
    ],
)
def test_pointers_are_told_from_images(tmp_path, pointer):
    write(tmp_path / "set", ["test/a/1.png", "test/b/1.png"])
    (tmp_path / "set" / "test" / "b" / "1.png").write_bytes(pointer)
    found, _ = scanned(dataset("folder", splits=["test"]), tmp_path)
    assert found[0].error is None
    assert "pointer" in found[1].error
    assert found[1].data is None


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        ("Train Test", {"train": "Train", "test": "Test"}),
        ("train valid", {"train": "train", "test": "valid"}),
        ("TRAIN VAL", {"train": "TRAIN", "test": "VAL"}),
        ("training dev", {"train": "training", "test": "dev"}),
        ("train valid test", {"train": "train", "test": "test"}),
        ("eval", {"test": "eval"}),
    ],
)
def test_splits_go_by_several_names(tmp_path, folders, splits):
    write(tmp_path / "set", [f"{name}/a/1.png" for name in folders.split()])
    (found,) = catalog.datasets(["set"], str(tmp_path))
    assert found.splits == splits
    assert len(scanned(found, tmp_path)[0]) == 1
    taken = splits["test"].lower() != "test"
    assert sources.remarks(found, str(tmp_path)) == (
        [f"its {splits['test']!r} split is taken for test"] if taken else []
    )


def test_a_split_in_another_case_is_found_where_a_yaml_names_it(tmp_path):
    write(tmp_path / "set", ["Train/a/1.png", "TEST/a/1.png"])
    assert len(scanned(dataset("folder"), tmp_path)[0]) == 1
    assert len(scanned(dataset("folder"), tmp_path, "train")[0]) == 1


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        (
            ["train/1.png", "test/2.png"],
            "lie right in train/: move each into a folder of its class",
        ),
        (["cats/1.png", "dogs/2.png"], "If these are class folders, move them into test/"),
        (["1.png", "2.png"], "belong into test/<class>/<image>"),
        (["train/a/1.png"], "a test split is needed"),
    ],
)
def test_folders_that_fit_almost_are_shown_the_way(tmp_path, paths, words):
    write(tmp_path / "set", paths)
    with pytest.raises(ConfigError) as caught:
        catalog.datasets(["set"], str(tmp_path))
    assert words in str(caught.value)


def test_what_cannot_be_listed_is_one_sentence(bucket, tmp_path):
    for uri, words in [
        ("s4://bucket/set", "protocol s4:// cannot be used"),
        (f"{bucket}-absent/set", "does not exist"),
    ]:
        with pytest.raises(ConfigError, match=words):
            catalog.datasets([uri])
