"""What the README says of files and methods is true."""

import re
from pathlib import Path

from clipray.numerics.fusers import FUSERS

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text()
PICTURE = 200_000  # bytes


def test_every_fuser_stands_there_with_the_sentence_of_its_registry():
    table = TEXT[TEXT.index("Every fuser in one line") : TEXT.index("</details>")]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", table, re.M))
    assert rows == {name: fuser.about for name, fuser in FUSERS.items()}


def test_the_picture_is_there_and_small():
    (place,) = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", TEXT)
    assert 0 < (ROOT / place).stat().st_size <= PICTURE
