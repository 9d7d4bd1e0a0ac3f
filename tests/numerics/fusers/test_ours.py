"""`nlc_prior`, `proto_fusion` and `guarded`: what they are without evidence, and what they do with it."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from clipray.numerics.contracts import Support
from clipray.numerics.fewshot import prototypes
from clipray.numerics.fewshot.prototypes import class_means
from clipray.numerics.fusers import FUSERS, guarded, proto_fusion, settings_of
from tests.numerics.made import problem, support


def out(name, s, test, **changes):
    f = FUSERS[name]
    return f.apply(f.fit([s], settings_of(name, changes))[0], test[0], test[1])


def test_nlc_prior_without_evidence_is_the_calibrated_average():
    s, test = support(seed=1), problem(seed=2)
    torch.testing.assert_close(
        out("nlc_prior", s, test, penalties=(1e9,)), out("c_log_avg", s, test), atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(
        out("nlc_prior", s, test, standard_errors=1e9),
        out("c_log_avg", s, test),
        atol=1e-5,
        rtol=1e-5,
    )


def test_nlc_prior_learns_which_backbone_to_trust_where():
    g = torch.Generator().manual_seed(0)

    def region(images):
        y = torch.randint(0, 3, (images,), generator=g)
        side = torch.randint(0, 2, (images,), generator=g)
        x = torch.stack([side * 2.0 - 1, torch.ones(images)], 1) + 0.1 * torch.randn(
            images, 2, generator=g
        )
        noise = torch.randint(0, 3, (images,), generator=g)
        picks = torch.stack([torch.where(side == 0, y, noise), torch.where(side == 1, y, noise)], 1)
        return torch.nn.functional.one_hot(picks, 3) * 2.0, (x, x), y

    s, test = Support(*region(150)), region(300)
    accuracy = {
        n: (out(n, s, test).argmax(1) == test[2]).float().mean() for n in ("nlc_prior", "c_log_avg")
    }
    assert accuracy["nlc_prior"] > accuracy["c_log_avg"] + 0.05


def test_left_out_cosines_equal_a_plain_loop():
    _, (e,), y = problem(images=14, dims=(5,))
    x = torch.nn.functional.normalize(e, dim=1)
    means, count = class_means(x, y, 4)
    ours = proto_fusion.left_out_cosines(x, means, y, count)
    for k in range(14):
        for c in range(4):
            others = [j for j in range(14) if y[j] == c and j != k]
            expected = torch.nn.functional.cosine_similarity(x[k], x[others].mean(0), dim=0)
            torch.testing.assert_close(ours[k, c], expected)


def test_proto_fusion_at_one_shot_holds_its_prior():
    s = support(images=4)
    state = FUSERS["proto_fusion"].fit([s], settings_of("proto_fusion"))[0]
    assert state.tensors["weight_2"].tolist() == [1, 1]
    for m, e in enumerate(s.embeddings):
        x = torch.nn.functional.normalize(e, dim=1)
        x = torch.nn.functional.normalize(x - x.mean(0), dim=1)
        wrong = (x @ x.T)[~torch.eye(4, dtype=torch.bool)]
        expected = settings_of("proto_fusion").d_prime / np.std(wrong.numpy())
        np.testing.assert_allclose(state.tensors["gamma_M"][m], expected, rtol=1e-4)


def test_proto_fusion_trusts_whichever_source_is_good():
    z, embeddings, y = problem(images=80, seed=3, noise=0.5)
    useless = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    noise = tuple(
        torch.randn(e.shape, generator=torch.Generator().manual_seed(1)) for e in embeddings
    )
    test = problem(images=80, seed=3, noise=0.5)
    by_images = FUSERS["proto_fusion"].fit(
        [Support(useless, embeddings, y)], settings_of("proto_fusion")
    )[0]
    right = FUSERS["proto_fusion"].apply(by_images, useless, test[1]).argmax(1) == y
    assert right.float().mean() > 0.9
    by_text = FUSERS["proto_fusion"].fit([Support(z, noise, y)], settings_of("proto_fusion"))[0]
    other = tuple(
        torch.randn(e.shape, generator=torch.Generator().manual_seed(2)) for e in embeddings
    )
    fused = (FUSERS["proto_fusion"].apply(by_text, z, other).argmax(1) == y).float().mean()
    text = (z.mean(1).argmax(1) == y).float().mean()
    assert fused >= text - 0.05


def test_a_class_without_prototype_is_neither_favoured_nor_barred():
    logits = torch.tensor([[[1.0, 3.0, 9.0]]])
    assert proto_fusion.neutral(logits, torch.tensor([True, True, False])).tolist() == [
        [[1.0, 3.0, 2.0]]
    ]


def test_guarded_goes_with_the_good_candidates_and_states_its_weights():
    z, embeddings, y = problem(images=80, seed=3, noise=0.5)
    useless = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    f = FUSERS["guarded"]
    state = f.fit([Support(useless, embeddings, y)], f.settings)[0]
    stated = state.numbers["weights"]
    assert (
        stated["best_single_on_support"] + stated["c_log_avg"] < 0.2
    )  # the others see the embeddings


def test_guarded_of_one_shot_trusts_text_that_is_right_on_the_support_images():
    f, good = FUSERS["guarded"], support(images=4)
    right = 5 * torch.nn.functional.one_hot(good.labels_K, 4)[:, None].expand(-1, 3, -1).float()
    for text, taken in ((right, f.settings.with_text), (-right, (f.settings.otherwise,))):
        state = f.fit([dataclasses.replace(good, logits_KMC=text)], f.settings)[0]
        expected = {n: (n in taken) / len(taken) for n in f.settings.candidates}
        assert state.numbers["weights"] == expected


def test_guarded_without_labels_is_log_avg_until_unlabelled_images_teach():
    f, (z, embeddings, _) = FUSERS["guarded_single"], problem(seed=2)
    labels = torch.zeros(0, dtype=torch.int64)
    nothing = Support(z[:0], tuple(e[:0] for e in embeddings), labels)
    state = f.fit([nothing], f.settings)[0]
    assert torch.equal(f.apply(state, z, embeddings), FUSERS["log_avg"].apply(state, z, embeddings))


def test_guarded_gives_no_weight_to_a_candidate_that_only_guesses():
    """Text that knows nothing: with ten images of prior, each candidate would keep a share."""
    z, embeddings, y = problem(images=40, seed=3, noise=0.5)
    useless = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    f = FUSERS["guarded"]
    weights = f.fit([Support(useless, embeddings, y)], f.settings)[0].numbers["weights"]
    assert weights["c_log_avg"] == weights["best_single_on_support"] == 0
    assert sum(weights.values()) == pytest.approx(1)


def test_guarded_of_one_candidate_ranks_as_that_one():
    s, test, name = support(seed=1), problem(seed=2), "c_log_avg"
    ours, alone = (
        out(
            "guarded", s, test, candidates=(name,), otherwise=name, blind=(name,), with_text=(name,)
        ),
        out(name, s, test),
    )
    assert torch.equal(ours.argsort(1), alone.argsort(1))


def test_guarded_mixes_evenly_where_logits_are_borrowed_and_nothing_can_be_held_out():
    f = FUSERS["guarded"]
    seen, unseen = (dataclasses.replace(support(images=n), borrowed=True) for n in (40, 4))
    weights = f.fit([unseen], f.settings)[0].numbers["weights"]
    assert weights == {n: pytest.approx((n in f.settings.blind) / 3) for n in f.settings.candidates}
    plain = dataclasses.replace(seen, borrowed=False)
    assert f.fit([seen], f.settings)[0].numbers == f.fit([plain], f.settings)[0].numbers


GROWTH = r"""
import re
from pathlib import Path

import torch

from clipray.numerics import blocks
from clipray.numerics.contracts import Support
from clipray.numerics.fusers import proto_fusion

CLASSES, BACKBONES = 2000, 4
blocks.ELEMENTS = 2**18


def most(images):
    logits_KMC = torch.zeros(1).expand(images, BACKBONES, CLASSES)
    x_KD = torch.randn(images, 16)
    s = Support(logits_KMC, (x_KD,) * BACKBONES, torch.arange(images))
    count_C, paired_K = torch.ones(CLASSES, dtype=torch.int64), torch.zeros(images, dtype=torch.bool)
    proto_fusion._prototypes(s, count_C, paired_K, centre=True)
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024


few = most(CLASSES // 4)
print(most(CLASSES) - few)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what a process has held")
def test_more_blocks_of_images_take_no_more_memory_for_prototypes():
    done = subprocess.run(
        [sys.executable, "-c", GROWTH],
        cwd=Path(__file__).resolve().parents[3],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) < 15e6  # of 64 MB of cosines


def test_guarded_fits_no_candidate_that_its_rule_does_not_take():
    def refuse(supports, settings):
        assert not supports
        return []

    one_each, test = support(images=4), problem(seed=2)
    probe = FUSERS["linear_probe_concat"]._replace(fit=refuse)
    own = FUSERS | {"linear_probe_concat": probe}
    (state,) = guarded.fit(own, [one_each], settings_of("guarded"))
    said = guarded.apply(own, state, test[0], test[1])
    torch.testing.assert_close(said, out("guarded", one_each, test))
    with pytest.raises(AssertionError):
        guarded.fit(own, [support(images=40)], settings_of("guarded"))


def test_guarded_refuses_to_fall_back_on_what_is_no_candidate():
    with pytest.raises(
        ValueError, match="anchored, best_single_on_support, proto_fusion must be among"
    ):
        settings_of("guarded", {"candidates": ["c_log_avg"]})


def test_guarded_calibrates_a_candidate_that_is_right_but_too_sure():
    """Ten times the logits change no ranking, so they must not change the weights."""
    s, f = support(seed=1, images=60), FUSERS["c_log_avg"]
    sure = f._replace(apply=lambda state, z, e: torch.log_softmax(10 * f.apply(state, z, e), dim=1))
    plain = guarded.fit(FUSERS, [s], settings_of("guarded"))[0].tensors["w_J"]
    loud = guarded.fit(FUSERS | {"c_log_avg": sure}, [s], settings_of("guarded"))[0].tensors["w_J"]
    torch.testing.assert_close(plain, loud, atol=0.05, rtol=0)


@pytest.mark.parametrize("dims", [(6,), (6, 5)])
def test_guarded_is_the_same_alone_and_beside_sets_with_equal_parts_and_axes_of_their_own(
    dims, monkeypatch
):
    s, f = support(images=36, dims=dims), FUSERS["guarded"]
    fold_K = guarded._split(s.labels_K, f.settings)
    every = [s, *(s.take(fold_K != k) for k in range(3))]
    together = f.fit(every, f.settings)
    assert not any("axes" in one.known for one in every)
    monkeypatch.setattr(prototypes, "AXES", 0)
    for one, state in zip(every, together, strict=True):
        (alone,) = f.fit([dataclasses.replace(one)], f.settings)
        assert alone.tensors.keys() == state.tensors.keys()
        for name, tensor in alone.tensors.items():
            torch.testing.assert_close(tensor, state.tensors[name], rtol=1e-5, atol=1e-5)
