"""Heads and fusers on one support set: shared out, neither sees the images of the other."""

import dataclasses

import pytest
import torch

from clipray.numerics.contracts import Shots
from clipray.numerics.heads import HEADS, cross_fit, head_of

K, C, D = 24, 3, 5


def problem(seed=0):
    """What two backbones' heads may learn from: eight images a class."""
    generator = torch.Generator().manual_seed(seed)
    labels_K = torch.arange(K) % C
    found = []
    for _ in range(2):
        classes_CD = torch.randn(C, D, generator=generator)
        noise_KD = torch.randn(K, D, generator=generator)
        found.append(Shots(classes_CD[labels_K] + noise_KD, labels_K, classes_CD, 10.0, 0.0, seed))
    return found


def rows_in(part_KD, whole_KD):
    """Where rows of one matrix stand in another."""
    return {int((whole_KD == row).all(1).nonzero()) for row in part_KD}


@pytest.mark.parametrize("name", ["linear_probe", "tip_adapter", "zero_shot"])
def test_heads_and_fusers_share_the_images_out(name):
    head, whole = head_of(name, {}), problem()
    parted = cross_fit.parted(head, whole, 5, 0.25)
    for m, shots in enumerate(whole):
        heads = rows_in(parted.problem[m].embeddings_KD, shots.embeddings_KD)
        fusers = rows_in(parted.support.embeddings[m], shots.embeddings_KD)
        assert not heads & fusers
        assert heads | fusers == set(range(K))
    assert parted.support.labels_K.bincount().tolist() == [2, 2, 2]
    assert not parted.support.borrowed


@pytest.mark.parametrize("name", ["linear_probe", "tip_adapter", "zero_shot_probe"])
def test_what_fusers_see_is_what_a_head_of_the_rest_says(name):
    """By hand: the head fitted on the rest alone; other labels of the held images change nothing."""
    head, whole = head_of(name, {}), problem()
    parted = cross_fit.parted(head, whole, 5, 0.25)
    for m, shots in enumerate(parted.problem):
        (state,) = head.fit([shots], head.settings)
        parts = (shots.classifier_CD, shots.scale, shots.bias)
        said_KC = head.apply(state, parted.support.embeddings[m], *parts)
        torch.testing.assert_close(parted.support.logits_KMC[:, m], said_KC)
    support = cross_fit.support(head, whole, 5)
    assert len(support.labels_K) == K  # without sharing, fusers see every image


def test_without_a_share_all_learn_from_all():
    head, whole = HEADS["linear_probe"], problem()
    parted = cross_fit.parted(head, whole, 5, 0.0)
    assert parted.problem == whole
    other = cross_fit.support(head, whole, 5)
    assert torch.equal(parted.support.logits_KMC, other.logits_KMC)
    assert dataclasses.asdict(parted.support).keys() == dataclasses.asdict(other).keys()


def test_one_image_a_class_cannot_be_shared_out():
    head, rows = HEADS["linear_probe"], torch.arange(C)
    few = [shots.take(rows) for shots in problem()]
    assert cross_fit.parted(head, few, 5, 0.5).support.borrowed


@pytest.mark.parametrize("name", ["linear_probe", "tip_adapter", "zero_shot"])
def test_fusers_learn_from_some_images_of_a_support_set_that_is_too_large(name, monkeypatch):
    """From four images a class, of which they see what they would see among all; heads learn from all."""
    head, whole = head_of(name, {}), problem()
    every = cross_fit.support(head, whole, 5)
    monkeypatch.setattr(cross_fit, "LEARNED", 2 * C * 4 * C)
    parted = cross_fit.parted(head, whole, 5, 0.0)
    assert parted.problem == whole
    rows = sorted(rows_in(parted.support.embeddings[0], whole[0].embeddings_KD))
    own = every.take(torch.tensor(rows))
    torch.testing.assert_close(parted.support.logits_KMC, own.logits_KMC)
    assert torch.equal(parted.support.labels_K, own.labels_K)
    assert own.labels_K.bincount().tolist() == [4, 4, 4]
    held = cross_fit.parted(head, whole, 5, 0.75).support
    assert held.labels_K.bincount().tolist() == [4, 4, 4]


def test_of_very_many_classes_one_image_is_left_of_each_that_has_any(monkeypatch):
    whole = problem()
    seen = [shots.take(shots.labels_K != 1) for shots in whole]
    monkeypatch.setattr(cross_fit, "LEARNED", 0)
    for every, count in ((whole, [1, 1, 1]), (seen, [1, 0, 1])):
        support = cross_fit.support(HEADS["zero_shot"], every, 5)
        assert support.labels_K.bincount().tolist() == count
