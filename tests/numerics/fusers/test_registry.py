"""Invariants that every fuser of the registry must keep, and hand-worked votes."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from clipray import schema
from clipray.numerics.contracts import State, Support, dump_settings
from clipray.numerics.fusers import FUSERS, averages, from_parts, settings_of, singles, to_parts
from tests.numerics.made import problem, support

TEST = problem(images=50, seed=9)
FAST = {n: {"max_steps": 5} for n in ("nlc", "moe", "swig")} | {"gac": {"generations": 3}}
SEEDED = ("nlc", "swig", "gac")  # their random start is tied to the order of the backbones
SUPPORTS = [support(seed=0, images=12), support(seed=1, images=12), support(seed=2, images=24)]


def settings(name):
    return settings_of(name, FAST.get(name))


def fit(name, supports):
    return FUSERS[name].fit(supports, settings(name))


@pytest.fixture(scope="module")
def fitted():
    class Cache(dict):
        def __missing__(self, name):
            self[name] = fit(name, SUPPORTS)
            return self[name]

    return Cache()


@pytest.mark.parametrize("name", FUSERS)
def test_gives_a_distribution(name, fitted):
    out = FUSERS[name].apply(fitted[name][0], TEST[0], TEST[1])
    assert out.shape == (50, 4)
    torch.testing.assert_close(out.exp().sum(1), torch.ones(50), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", FUSERS)
def test_fits_of_several_supports_equal_fits_one_by_one(name, fitted):
    for s, state in zip(SUPPORTS, fitted[name], strict=True):
        alone = fit(name, [s])[0]
        ours, theirs = (FUSERS[name].apply(st, TEST[0], TEST[1]) for st in (state, alone))
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("name", FUSERS)
def test_adding_a_constant_to_an_images_logits_changes_nothing(name, fitted):
    g = torch.Generator().manual_seed(3)
    moved = [
        Support(
            s.logits_KMC + torch.randn(len(s.labels_K), 3, 1, generator=g),
            s.embeddings,
            s.labels_K,
            s.seed,
        )
        for s in SUPPORTS[:1]
    ]
    state = fit(name, moved)[0]
    ours = FUSERS[name].apply(state, TEST[0] + torch.randn(50, 3, 1, generator=g), TEST[1])
    torch.testing.assert_close(
        ours, FUSERS[name].apply(fitted[name][0], TEST[0], TEST[1]), atol=3e-4, rtol=1e-3
    )


@pytest.mark.parametrize("name", [n for n in FUSERS if n not in SEEDED])
def test_permuting_backbones_changes_nothing(name, fitted):
    order = [2, 0, 1]
    turned = [
        Support(s.logits_KMC[:, order], tuple(s.embeddings[i] for i in order), s.labels_K, s.seed)
        for s in SUPPORTS[:1]
    ]
    state = fit(name, turned)[0]
    ours = FUSERS[name].apply(state, TEST[0][:, order], tuple(TEST[1][i] for i in order))
    torch.testing.assert_close(
        ours, FUSERS[name].apply(fitted[name][0], TEST[0], TEST[1]), atol=2e-4, rtol=1e-3
    )


@pytest.mark.parametrize("name", FUSERS)
def test_one_image_alone_gets_what_it_gets_in_company(name, fitted):
    if FUSERS[name].transductive:
        pytest.skip("depends on the other images by design")
    all_at_once = FUSERS[name].apply(fitted[name][0], TEST[0], TEST[1])
    alone = FUSERS[name].apply(fitted[name][0], TEST[0][7:8], tuple(e[7:8] for e in TEST[1]))
    torch.testing.assert_close(alone[0], all_at_once[7], atol=1e-5, rtol=1e-5)


MIXTURES = ("conf_weighted", "moe", "swig", "knora_e", "knora_u", "ola", "meta_des")


@pytest.mark.parametrize("name", [name for name in FUSERS if FUSERS[name].weights])
def test_weights_are_those_of_the_answer(name, fitted):
    """They sum to 1, and where a fuser mixes probabilities NumPy's weighted mean is its answer."""
    fuser, state = FUSERS[name], fitted[name][0]
    w_NM = fuser.weights(state, *TEST[:2]).double().numpy()
    assert w_NM.min() >= 0
    np.testing.assert_allclose(w_NM.sum(1), 1, atol=1e-6)
    if name not in MIXTURES:
        assert name == "nlc"  # it weighs logits, and without bounds
        return
    expected = (w_NM[:, :, None] * softmax(TEST[0].double().numpy(), 2)).sum(1)
    ours = fuser.apply(state, *TEST[:2]).double().exp().numpy()
    np.testing.assert_allclose(ours, expected, atol=1e-4)


@pytest.mark.parametrize("name", FUSERS)
def test_a_state_comes_back_equal_from_its_parts(name, fitted):
    tensors, mapping = to_parts(fitted[name][0])
    again = from_parts(name, tensors, json.loads(json.dumps(mapping)))
    assert again.settings == fitted[name][0].settings
    ours = FUSERS[name].apply(again, TEST[0], TEST[1])
    assert torch.equal(ours, FUSERS[name].apply(fitted[name][0], TEST[0], TEST[1]))


@pytest.mark.parametrize("name", FUSERS)
def test_settings_are_json_and_frozen(name):
    plain = dump_settings(FUSERS[name].settings)
    assert json.loads(json.dumps(plain)).keys() == plain.keys()
    with pytest.raises(TypeError):
        settings_of(name, {"no_such_setting": 1})


ENSEMBLE_OF_ONE = [
    "mean_logits", "log_avg", "prob_avg", "conf", "conf_weighted", "best_single_on_support",
]  # fmt: skip


@pytest.mark.parametrize("name", ENSEMBLE_OF_ONE)
def test_an_ensemble_of_one_is_that_one(name):
    s, z = SUPPORTS[0], TEST[0][:, :1]
    one = Support(s.logits_KMC[:, :1], s.embeddings[:1], s.labels_K)
    out = FUSERS[name].apply(fit(name, [one])[0], z, TEST[1][:1])
    np.testing.assert_allclose(out, log_softmax(z[:, 0].numpy(), axis=1), atol=1e-5)


@pytest.mark.parametrize("name", ["c_log_avg", "c_prob_avg", "c_conf", "vote_top1", "vote_top3"])
def test_an_ensemble_of_one_ranks_as_that_one(name):
    s, z = SUPPORTS[0], TEST[0][:, :1]
    one = Support(s.logits_KMC[:, :1], s.embeddings[:1], s.labels_K)
    out = FUSERS[name].apply(fit(name, [one])[0], z, TEST[1][:1])
    assert torch.equal(out.argmax(1), z[:, 0].argmax(1))


def test_averages_equal_scipy_formulas():
    z = TEST[0].numpy().astype(np.float64)
    p, log_p = softmax(z, axis=2), log_softmax(z, axis=2)
    product = np.exp(log_p.mean(1))
    expected = {
        "mean_logits": log_softmax(z.mean(1), axis=1),
        "log_avg": np.log(product / product.sum(1, keepdims=True)),
        "prob_avg": np.log(p.mean(1)),
        "conf": np.stack([log_p[n, p[n].max(1).argmax()] for n in range(50)]),
        "conf_weighted": np.log(np.einsum("nm,nmc->nc", softmax(p.max(2), axis=1), p)),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(FUSERS[name].apply(State(None), TEST[0], ()), value, atol=1e-5)


def test_votes_by_hand():
    z = torch.tensor(
        [
            [
                [3.0, 2.0, 1.0, 0.0],
                [3.0, 2.0, 1.0, 0.0],
                [0.0, 1.0, 2.0, 9.0],
            ],  # two votes for class 0
            [
                [3.0, 2.0, 1.0, 0.0],
                [2.0, 3.0, 1.0, 0.0],
                [0.0, 0.0, 9.0, 0.0],
            ],  # one each: the surest product wins
        ]
    )
    top1 = averages.vote(State(averages.Vote(1)), z)
    assert top1.argmax(1)[0] == 0
    assert top1.argmax(1)[1] == log_softmax(z[1].numpy(), axis=1).mean(0).argmax()
    # best 2: image 0 gives class 0: 2, class 1: 2, class 2: 1, class 3: 1; the product decides between 0 and 1
    product = log_softmax(z[0].numpy(), axis=1).mean(0)
    assert averages.vote(State(averages.Vote(2)), z).argmax(1)[0] == int(product[1] > product[0])


def test_vote_ties_hold_at_extreme_confidence():
    z = torch.tensor([[[500.0, 0.0, 0.0], [0.0, 400.0, 0.0]]])
    assert averages.vote(State(averages.Vote(1)), z).argmax(1).item() == 0


def test_the_oracle_bounds_every_fixed_choice_of_a_backbone(fitted):
    z, embeddings, y = TEST
    right = (singles.oracle(z, y).argmax(1) == y).double().mean()
    assert right == (z.argmax(2) == y[:, None]).any(1).double().mean()
    for name in ("best_single_on_support", "conf", "c_conf"):
        out = FUSERS[name].apply(fitted[name][0], z, embeddings)
        assert (out.argmax(1) == y).double().mean() <= right
    best, out = singles.best_single_on_test(z, y)
    assert (out.argmax(1) == y).double().mean() == max(
        (z[:, m].argmax(1) == y).double().mean() for m in range(3)
    )
    assert torch.equal(out, singles.single(z, best))


def test_supports_of_wrong_shape_are_refused():
    with pytest.raises(ValueError, match="labels"):
        Support(torch.zeros(3, 2, 4), (), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="lie in"):
        Support(torch.zeros(3, 2, 4), (), torch.tensor([0, 1, 4]))


def test_controls_are_those_that_the_readme_lists():
    readme = (Path(__file__).parents[3] / "README.md").read_text()
    (line,) = [line for line in readme.splitlines() if line.startswith("| controls: ")]
    controls = {name for name, fuser in FUSERS.items() if fuser.kind == "control"}
    assert controls == set(re.findall(r"`(\w+)`", line))
    assert {fuser.kind for fuser in FUSERS.values()} <= set(schema.KINDS)
