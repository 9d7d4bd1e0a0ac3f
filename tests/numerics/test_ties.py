"""Equal inputs give equal outputs to the last bit, for every fuser and head, on every kind of CPU."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from clipray.numerics.contracts import Shots, Support
from clipray.numerics.fusers import FUSERS, settings_of
from clipray.numerics.heads import HEADS
from clipray.numerics.measures import outcomes
from clipray.numerics.ties import first_alike, level

DIMS = (5, 7, 6, 8, 9)
SLOW = {
    "gac",
    "guarded",
    "guarded_pool",
    "guarded_single",
    "meta_des",
    "nlc",
    "nlc_prior",
    "stacking",
    "moe",
    "swig",
}
SHORT = {"nlc": {"max_steps": 3}, "moe": {"max_steps": 3}, "swig": {"max_steps": 3}}
OF_THEIR_OWN = {  # what they say of a class comes from its own support images
    *("anchored", "guarded", "guarded_pool", "guarded_single", "linear_probe_concat"),
    *("ncm_concat", "proto_avg", "proto_fusion"),
    *("nlc_meta", "stacking", "tip_adapter_avg"),
}


def tied(classes: int, images: int, backbones: int, seed: int):
    """Random logits and embeddings with two tied classes, and a support set that has no image of these two."""
    generator = torch.Generator().manual_seed(1000 * classes + 10 * images + seed)
    twins = torch.randperm(classes, generator=generator)[:2].tolist()

    def made(number: int):
        z = 20 * torch.randn(number, backbones, classes, generator=generator)
        z[..., twins[1]] = z[..., twins[0]]
        spaces = (torch.randn(number, dim, generator=generator) for dim in DIMS[:backbones])
        return z, tuple(spaces)

    labels = torch.arange(classes).repeat_interleave(2)
    labels = labels[~torch.isin(labels, torch.tensor(twins))]
    return Support(*made(len(labels)), labels), made(images), twins


def fused(name: str, support: Support, images) -> torch.Tensor:
    fuser = FUSERS[name]
    return fuser.apply(fuser.fit([support], settings_of(name, SHORT.get(name)))[0], *images)


def cases():
    """(classes, images, backbones, fuser); fusers that take long see a few."""
    for classes in (2, 3, 5, 8, 9, 16, 17, 31, 33, 64, 67):
        for images in (1, 2, 7, 16, 33):
            for backbones in (2, 5):
                for name, fuser in FUSERS.items():
                    if classes == 2 and fuser.needs_labels:
                        continue  # without the twins no class is left to have images
                    if name in SLOW and (classes not in (5, 17) or images != 33):
                        continue
                    yield classes, images, backbones, name


def survey() -> dict:
    """The predictions of every case, and the cases whose twins are not equal."""
    torch.set_num_threads(1)
    said, unequal = {}, []
    for classes, images, backbones, name in cases():
        support, test, twins = tied(classes, images, backbones, 0)
        out = fused(name, support, test)
        case = f"{name} {classes} {images} {backbones}"
        said[case] = out.argmax(1).tolist()
        if not torch.equal(out[:, twins[0]], out[:, twins[1]]):
            unequal.append(case)
    return {"cpu": torch.backends.cpu.get_cpu_capability(), "said": said, "unequal": unequal}


def test_twins_are_equal_and_predictions_the_same_on_every_cpu():
    program = (
        "import json; from tests.numerics.test_ties import survey; print(json.dumps(survey()))"
    )
    environment = {k: v for k, v in os.environ.items() if k != "ATEN_CPU_CAPABILITY"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env=environment | kind,
            stdout=subprocess.PIPE,
            text=True,
        )
        for kind in ({"ATEN_CPU_CAPABILITY": "default"}, {"ATEN_CPU_CAPABILITY": "avx2"}, {})
    ]
    first, *others = [json.loads(process.communicate()[0]) for process in started]
    assert first["cpu"] == "DEFAULT"
    for one in (first, *others):
        assert one["unequal"] == []
        assert one["said"].keys() == first["said"].keys()
        different = [case for case, rows in one["said"].items() if rows != first["said"][case]]
        assert different == [], one["cpu"]


@pytest.mark.parametrize("name", sorted(set(FUSERS) - {"ot"}))
def test_ties_of_single_images_are_exact_too(name):
    """Coarse logits tie in some images and not in others; only what is equal in all backbones must be equal."""
    support, (_, spaces), _ = tied(17, 33, 2, 1)
    z = torch.randint(0, 3, (33, 2, 17), generator=torch.Generator().manual_seed(0)).float()
    zero = support.logits_KMC.new_zeros(0, 2, 17)
    if name not in OF_THEIR_OWN:
        out = fused(name, support, (z, spaces))
    elif name in ("stacking", "linear_probe_concat"):
        return  # they cannot be fitted on nothing
    else:
        empty = Support(zero, tuple(e[:0] for e in support.embeddings), support.labels_K[:0])
        out = fused(name, empty, (z, spaces))
    checked = 0
    for n in range(33):
        for a in range(17):
            for b in range(a):
                if torch.equal(z[n, :, a], z[n, :, b]):
                    assert out[n, a] == out[n, b]
                    checked += 1
    assert checked > 100


@pytest.mark.parametrize("name", sorted(OF_THEIR_OWN))
def test_twins_with_support_images_of_their_own_stay_apart(name):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(4).repeat(6)
    places = torch.randn(4, 6, generator=generator)
    spaces = [places[labels] + 0.1 * torch.randn(24, 6, generator=generator) for _ in range(4)]
    z = torch.randn(24, 2, 4, generator=generator)
    z[..., 1] = z[..., 0]
    support, test = Support(z, tuple(spaces[:2]), labels), (z, tuple(spaces[2:]))
    out = fused(name, support, test)
    assert (out[:, 0] != out[:, 1]).float().mean() > 0.9
    if name == "stacking":  # it sees logits alone, so it cannot say which of the twins it is
        return
    own = labels < 2
    assert ((out[own, 0] > out[own, 1]) == (labels[own] == 0)).all()


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("classes", [3, 8, 17, 33, 67])
def test_heads_tie_classes_of_one_text_that_have_no_support_image(name, classes):
    generator = torch.Generator().manual_seed(classes)
    text = torch.randn(classes, 16, generator=generator)
    text[classes - 1] = text[0]
    labels = torch.arange(1, classes - 1).repeat(2)
    problem = Shots(torch.randn(len(labels), 16, generator=generator), labels, text, 50.0, -1.0)
    head = HEADS[name]
    (state,) = head.fit([problem], head.settings)
    for images in (1, 7, 33):
        x = torch.randn(images, 16, generator=generator)
        out = head.apply(state, x, text, 50.0, -1.0)
        assert torch.equal(out[:, 0], out[:, classes - 1])
    seen = problem._replace(labels_K=torch.cat([labels[:-2], torch.tensor([0, classes - 1])]))
    if head.needs_labels and classes > 3:
        (state,) = head.fit([seen], head.settings)
        out = head.apply(state, problem.embeddings_KD[-2:], text, 50.0, -1.0)
        assert (out[:, 0] - out[:, classes - 1] > 0).tolist() == [True, False]


@pytest.mark.parametrize("name", ["vote_top1", "vote_top3"])
def test_a_vote_for_one_twin_is_a_vote_for_the_other(name):
    """One backbone cannot tell classes 0 and 1 apart; the second can, and says 1."""
    z = torch.tensor([[[5.0, 5.0, 1.0, 0.9, 0.8], [1.0, 5.0, 0.9, 0.8, 0.7]]])
    nothing = Support(z[:0], (), torch.zeros(0, dtype=torch.int64))
    out = fused(name, nothing, (z, ()))
    assert out.argmax(1).tolist() == [1]
    assert out.exp().sum(1).tolist() == pytest.approx([1.0])


def test_level_keeps_what_is_not_tied_and_takes_the_highest_of_what_is():
    z = torch.tensor([[[1.0, 2.0, 1.0], [3.0, 4.0, 3.0]], [[1.0, 2.0, 1.0], [3.0, 4.0, 5.0]]])
    values = torch.tensor([[0.1, 0.2, 0.3], [0.1, 0.2, 0.3]])
    expected = torch.tensor([[0.3, 0.2, 0.3], [0.1, 0.2, 0.3]])
    assert torch.equal(level(values, z), expected)
    assert torch.equal(level(values, z, per_image=False), values)
    seen = {"labels_K": torch.tensor([0])}
    assert torch.equal(level(values, z, seen), values)


@pytest.mark.parametrize("per_image", [True, False])
@pytest.mark.parametrize("backbones", [1, 2, 3])
def test_level_equals_a_loop_over_all_pairs_of_classes(backbones, per_image):
    generator = torch.Generator().manual_seed(backbones)
    z = torch.randint(0, 3, (40, backbones, 9), generator=generator).float()
    z[:, :, 7] = z[:, :, 2]
    values = torch.rand(40, 9, generator=generator)
    kinds = [0, 0, 1, 0, 0, 0, 2, 1, 2]  # of each class
    tensors = {"own_1C": torch.tensor([kinds])}
    expected = values.clone()
    for i in range(40):
        for a in range(9):
            for b in range(9):
                seen = z[i] if per_image else z.flatten(0, 1)
                if kinds[a] == kinds[b] and torch.equal(seen[:, a], seen[:, b]):
                    expected[i, a] = max(expected[i, a], values[i, b])
    assert not torch.equal(expected, values)
    assert torch.equal(level(values, z, tensors, per_image), expected)


def test_columns_are_alike_as_a_loop_finds_them():
    columns = torch.randint(-1, 2, (3, 30), generator=torch.Generator().manual_seed(0)) * 0.5
    columns[0, 4] = -0.0  # equals 0
    first = [
        next(b for b in range(30) if torch.equal(columns[:, a], columns[:, b])) for a in range(30)
    ]
    assert first_alike(columns).tolist() == first
    assert first_alike((columns * 2).long()).tolist() == first


def test_of_equal_classes_the_first_is_among_the_best():
    """NumPy's stable sort is the authority."""
    log_p = torch.randint(0, 4, (200, 9), generator=torch.Generator().manual_seed(0)).float()
    labels = torch.arange(200) % 9
    best = np.argsort(-log_p.numpy(), axis=1, kind="stable")[:, :5]
    expected = (best == labels.numpy()[:, None]).any(1)
    assert (outcomes.top(log_p, labels, 5).numpy() == expected).all()
