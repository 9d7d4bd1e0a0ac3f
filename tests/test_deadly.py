"""Images that end the process which decodes them: here by a decoder that was made to."""

import io
import os
import signal

import pytest
from PIL import Image

from clipray import deadly, images

PLANTED = """
import os, signal
from PIL import Image
real = Image.open
def opened(file, *args, **kwargs):
    if b"ends it" in file.getvalue():
        os.kill(os.getpid(), signal.SIGSEGV)
    if b"leaves" in file.getvalue():
        os._exit(7)
    return real(file, *args, **kwargs)
Image.open = opened
"""


def picture(mark: bytes = b"") -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (9, 7), (200, 10, 10)).save(sink, "PNG")
    return sink.getvalue() + mark


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """A Pillow that dies of some images, in children of this process only."""
    (tmp_path / "sitecustomize.py").write_text(PLANTED)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_the_deadly_ones_are_named_and_all_others_are_as_they_were(planted):
    large = os.urandom(3 * 2**20)  # more than a pipe holds
    data = [picture(), picture(b"ends it"), b"no image", None, OSError("gone"), large]
    data += [picture(b"leaves"), picture(b"ends it"), picture()]
    known = [None] * 8 + ["named before"]
    every, errors = deadly.sifted(iter(data), known, images.MAX_PIXELS)
    assert every == data
    killed = f"decoding it ends the process ({signal.SIGSEGV.name})"
    left = "decoding it ends the process (exit code 7)"
    assert errors == [None, killed, None, None, None, None, left, killed, "named before"]


def test_nothing_is_started_where_nothing_is_to_be_tried(monkeypatch):
    monkeypatch.setattr(deadly, "_child", lambda: pytest.fail("a child was started"))
    assert deadly.sifted([None, b"x"], ["a", "b"], 10) == ([None, b"x"], ["a", "b"])
