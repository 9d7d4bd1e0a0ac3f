"""Where the logits of a support set lie: in memory, or in a file that nobody has to delete."""

import os
from pathlib import Path

import pytest
import torch

from clipray.steps import spill

MAPPED = Path("/proc/self/maps")


def mapped(folder) -> list[str]:
    """Files of a folder that this process has in its memory, deleted ones too."""
    return [line for line in MAPPED.read_text().splitlines() if str(folder) in line]


@pytest.mark.skipif(not MAPPED.exists(), reason="Linux tells what is mapped")
def test_many_logits_lie_in_a_file_that_goes_with_them(tmp_path, monkeypatch):
    monkeypatch.setattr(spill, "LEARNED", 5)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    small, large = spill.room(5, 1, 1), spill.room(2, 1, 3)
    assert small.shape == (5, 1, 1)
    assert large.shape == (2, 1, 3)
    assert large.dtype == torch.float32
    large[:] = torch.arange(6.0).view(2, 1, 3)
    kept = large[:, 0]
    del large
    assert kept.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert len(mapped(tmp_path)) == 1
    assert not list(tmp_path.iterdir())
    del kept
    assert not mapped(tmp_path)


def test_a_full_disk_leaves_them_in_memory(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(spill, "LEARNED", 5)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(os, "posix_fallocate", full)
    logits = spill.room(2, 1, 3)
    logits[:] = 1.0
    assert logits.sum() == 6
