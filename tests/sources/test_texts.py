"""Class names and templates in files of every make: read as an editor shows them, or refused with the file's name."""

import pytest

from clipray import sources
from clipray.errors import ConfigError
from clipray.sources import names, texts
from tests.sources.made import dataset, write_tar

WORDS = ["café au lait", "thé"]


@pytest.mark.parametrize(
    "data",
    [
        "café au lait\nthé\n".encode(),
        "café au lait\nthé".encode(),
        "café au lait\rthé\r".encode(),
        "\ufeffcafé au lait\r\nthé\r\n".encode(),
        "\n\ncafé au lait\n\nthé\n\n\n".encode(),
        "café au lait\nthé\n".encode("utf-16"),
        "café\u2028au lait\nthé".encode(),
        "café\x85au lait\nthé".encode(),
        " café \t au lait \nthé".encode(),
        b'["caf\\u00e9 au lait", "th\\u00e9"]',
        '{"0": "café au lait", "1": "thé"}'.encode(),
        '{"thé": 1, "café au lait": 0}'.encode(),
    ],
)
def test_class_names_are_read_from_any_text(tmp_path, data):
    (tmp_path / "classnames.txt").write_bytes(data)
    assert texts.names(str(tmp_path / "classnames.txt")) == WORDS


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("red\ncafé\n".encode("latin-1"), r"not UTF-8: b'red\\ncaf\\xe9\\n' in line 2"),
        ("café\n".encode("utf-16-le"), "NUL bytes|not UTF-8"),
        (b"0,blue\n1,red\n", "a number and a name a line"),
        (b"1: blue\n2: red\n", "a number and a name a line"),
        (b"label,name\n0,blue\n1,red\n", "a number and a name a line"),
        (b"'blue',\n'red',\n", "a list in a programming language"),
        (b'{"blue": 1, "red": 2}', "no list of texts"),
        (b'[["blue"], ["red"]]', "no list of texts"),
        (b"[1, 2]", "no list of texts"),
        (b"blue\ngreen\n\nred\n", "line 3 is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 1\n", "Git LFS pointer"),
    ],
)
def test_what_is_no_list_of_names_is_refused_with_the_files_name(tmp_path, data, words):
    (tmp_path / "classnames.txt").write_bytes(data)
    with pytest.raises(ConfigError, match=words) as caught:
        texts.names(str(tmp_path / "classnames.txt"))
    assert f"{tmp_path}/classnames.txt" in str(caught.value)


def test_names_with_commas_quotes_numbers_and_brackets_stay(tmp_path):
    odd = [
        "a, b",
        "{c}",
        '"quoted"',
        "😀",
        "<b>&amp;</b>",
        "it's",
        "x" * 300,
        "100%",
        "[x]",
        "3 men",
        "1,2",
    ]
    (tmp_path / "names.txt").write_text("\n".join(odd))
    assert texts.names(str(tmp_path / "names.txt")) == odd
    assert texts.names(str(tmp_path / "absent.txt")) is None


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a photo of a {c}.", "a photo of a {c}."),
        ("a photo of a {}.", "a photo of a {c}."),
        ("a {c} is a {c}", "a {c} is a {c}"),
        ('{c}, {"x"}', '{c}, {"x"}'),
        ('["a photo of a {c}."]', "a photo of a {c}."),
        ("a photo of a %s.", "has no"),
        ("a photo of a {classname}.", "has no"),
        ("a {} of {}", "more than once"),
        ("{c} {}", "more than once"),
        ("", "no prompt templates"),
        ("lambda c: f'a photo of a {c}.',", "Python code"),
        ("'a photo of a {}.',", "Python code"),
        ("f'a {c}'", "Python code"),
    ],
)
def test_templates_are_prompts_or_told(tmp_path, line, expected):
    write_tar(tmp_path / "set" / "test" / "0.tar", [])
    (tmp_path / "set" / "prompts.txt").write_text(line + "\n")
    given = dataset("wds").model_copy(update={"templates": "prompts.txt"})
    if "{c}" in expected:
        assert sources.templates(given, str(tmp_path)) == [expected]
        return
    with pytest.raises(ConfigError, match=expected):
        sources.templates(given, str(tmp_path))


@pytest.mark.parametrize(
    ("known", "given", "swapped"),
    [
        ("blue green red", "red green blue", True),
        ("blue green red", "blue green red", False),
        ("001.Black_Bird 002.Red-Bird", "black bird,red bird", False),
        ("001.Black_Bird 002.Red-Bird", "red bird,black bird", True),
        ("a b c d", "x,a,b,c", True),  # one renamed, all others a place late
        ("a b c d", "b,a,c,d", True),
        ("n01440764 n01443537", "tench,goldfish", False),
        ("crane crane_bird dog cat", "machine,crane,dog,cat", False),
        ("0 1 10 2", "0,1,2,10", True),
        ("1_a 2_a", "1_a,2_a", False),
        ("1_a 2_a", "2_a,1_a", True),
        ("A a", "a,A", True),
    ],
)
def test_names_of_the_folders_own_in_another_order(known, given, swapped):
    given = given.split(",") if "," in given else given.split()
    assert bool(names.swapped(known.split(), given)) == swapped


def test_names_in_another_order_than_folders_are_an_error_and_others_a_remark(tmp_path):
    for name in ("blue", "green", "red"):
        (tmp_path / "set" / "test" / name).mkdir(parents=True)
        (tmp_path / "set" / "test" / name / "1.png").write_bytes(b"x")
    swapped = dataset("folder", splits=["test"], classnames=["red", "green", "blue"])
    with pytest.raises(ConfigError, match="another order: blue = red, red = blue"):
        sources.classnames(swapped, str(tmp_path))
    other = dataset("folder", splits=["test"], classnames=["azure", "Green", "crimson"])
    assert sources.classnames(other, str(tmp_path)) == ["azure", "Green", "crimson"]
    (text,) = sources.remarks(other, str(tmp_path))
    assert text.endswith("blue = azure, red = crimson")
    own = dataset("folder", splits=["test"])
    assert sources.remarks(own, str(tmp_path)) == []
    empty = dataset("folder", splits=["test"], classnames=["a", " ", "b"])
    with pytest.raises(ConfigError, match="a class name is empty"):
        sources.classnames(empty, str(tmp_path))
