"""Dynamic selection, prototypes and transport against slow loops, scikit-learn and hand-worked cases."""

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.neighbors import NearestCentroid, NearestNeighbors

from clipray.numerics.fusers import FUSERS, dynamic_selection, settings_of
from clipray.numerics.fusers.ot import sinkhorn
from tests.numerics.made import problem, support

S = support(seed=2, images=30, noise=2.0)
Z, E, Y = problem(seed=8, images=25, noise=2.0)


def loop_weights(rule, k):
    weights = np.zeros((25, 3))
    right = (S.logits_KMC.argmax(2) == S.labels_K[:, None]).numpy()
    near = []
    for m in range(3):
        searcher = NearestNeighbors(n_neighbors=k, metric="cosine").fit(S.embeddings[m])
        near.append(searcher.kneighbors(E[m], return_distance=False))
    for n in range(25):
        who = [right[near[m][n], m] for m in range(3)]
        if rule == "knora_u":
            weights[n] = [w.sum() for w in who]
        elif rule == "ola":
            weights[n] = [w.sum() == max(v.sum() for v in who) for w in who]
        else:
            for size in range(k, 0, -1):
                weights[n] = [w[:size].all() for w in who]
                if weights[n].any():
                    break
        weights[n] = weights[n] / weights[n].sum() if weights[n].any() else 1 / 3
    return weights


@pytest.mark.parametrize("rule", ["knora_u", "knora_e", "ola"])
@pytest.mark.parametrize("k", [1, 7])
def test_selection_equals_a_plain_loop_over_scikit_learns_neighbours(rule, k):
    f = FUSERS[rule]
    out = f.apply(f.fit([S], settings_of(rule, {"neighbours": k}))[0], Z, E)
    expected = np.log(np.einsum("nm,nmc->nc", loop_weights(rule, k), torch.softmax(Z, -1).numpy()))
    np.testing.assert_allclose(out, expected, atol=1e-4)


def test_meta_features_by_hand():
    f = FUSERS["meta_des"]
    settings = settings_of("meta_des", {"neighbours": 2, "profiles": 1})
    state = f.fit([S], settings)[0]
    x = dynamic_selection.features(state.tensors, Z, E, settings, leave_self_out=False)
    rows = dynamic_selection.nearest(state.tensors, E, 2)
    p = torch.softmax(S.logits_KMC, -1)
    n, m = 4, 1
    for place, k in enumerate(rows[n, m].tolist()):
        right = float(S.logits_KMC[k, m].argmax() == S.labels_K[k])
        assert x[n, m, place].item() == right
        assert x[n, m, 3 + place].item() == pytest.approx(p[k, m, S.labels_K[k]].item())
    assert x[n, m, 2].item() == pytest.approx(x[n, m, :2].mean().item())
    profile = torch.cdist(torch.softmax(Z[n], -1).flatten()[None], p.flatten(1))[0].argmin()
    assert x[n, m, 6].item() == float(S.logits_KMC[profile, m].argmax() == S.labels_K[profile])
    assert x[n, m, -1].item() == pytest.approx(torch.softmax(Z[n, m], -1).max().item())


def test_left_out_images_are_not_their_own_neighbours():
    tensors = dynamic_selection.memory(S)
    rows = dynamic_selection.nearest(tensors, S.embeddings, 29, leave_self_out=True)
    assert (rows != torch.arange(30)[:, None, None]).all()


def test_meta_des_finds_the_backbone_that_is_right_by_region():
    g = torch.Generator().manual_seed(0)

    def region(images):
        y = torch.randint(0, 3, (images,), generator=g)
        side = torch.randint(0, 2, (images,), generator=g)
        x = torch.stack([side * 2.0 - 1, torch.ones(images)], 1) + 0.1 * torch.randn(
            images, 2, generator=g
        )
        wrong = (y + 1) % 3
        picks = torch.stack([torch.where(side == 0, y, wrong), torch.where(side == 1, y, wrong)], 1)
        return torch.nn.functional.one_hot(picks, 3) * 2.0, (x, x), y

    logits, embeddings, labels = region(60)
    s = dynamic_selection.Support(logits, embeddings, labels)
    z, e, y = region(100)
    for name in ("meta_des", "knora_u", "knora_e", "ola"):
        f = FUSERS[name]
        assert (f.apply(f.fit([s], f.settings)[0], z, e).argmax(1) == y).float().mean() > 0.95
    assert (z.mean(1).argmax(1) == y).float().mean() < 0.9


def test_nearest_class_mean_on_concatenated_embeddings_equals_scikit_learn():
    f = FUSERS["ncm_concat"]
    out = f.apply(f.fit([S], f.settings)[0], Z, E)
    unit = torch.nn.functional.normalize
    x = torch.cat([unit(e, dim=1) for e in S.embeddings], 1)
    model = NearestCentroid().fit(x, S.labels_K)
    means = unit(torch.from_numpy(model.centroids_), dim=1)
    queries = torch.cat([unit(e, dim=1) for e in E], 1)
    distance = torch.cdist(unit(queries, dim=1), means.float())
    assert torch.equal(out.argmax(1), distance.argmin(1))


def test_averaged_prototypes_equal_a_plain_loop():
    f = FUSERS["proto_avg"]
    out = f.apply(f.fit([S], f.settings)[0], Z, E)
    total = np.zeros((25, 4))
    for m in range(3):
        keys, x = (
            np.asarray(torch.nn.functional.normalize(e, dim=1)) for e in (S.embeddings[m], E[m])
        )
        centre = keys.mean(0)
        for c in range(4):
            mean = (keys - centre)[S.labels_K == c].mean(0)
            for n in range(25):
                v = x[n] - centre
                total[n, c] += v @ mean / np.linalg.norm(v) / np.linalg.norm(mean) / 3
    total /= f.settings.temperature
    expected = total - np.log(np.exp(total).sum(1, keepdims=True))
    np.testing.assert_allclose(out, expected, atol=1e-4)


def test_classes_without_support_images_are_never_chosen_by_prototypes():
    s = S.take(S.labels_K != 2)
    for name in ("ncm_concat", "proto_avg"):
        f = FUSERS[name]
        assert (f.apply(f.fit([s], f.settings)[0], Z, E).argmax(1) != 2).all()


def test_sinkhorns_plan_has_its_marginals_and_tends_to_the_best_assignment():
    g = torch.Generator().manual_seed(0)
    score = torch.randn(6, 3, generator=g).double()
    share = torch.full((3,), 1 / 3).double()
    plan = sinkhorn(score, share.log(), 0.02, 3000).exp()
    torch.testing.assert_close(plan.sum(1), torch.ones(6).double())
    torch.testing.assert_close(plan.mean(0), share, atol=1e-4, rtol=0)
    rows, columns = linear_sum_assignment(-score.repeat_interleave(2, dim=1).numpy())
    assert torch.equal(plan.argmax(1)[rows], torch.from_numpy(columns // 2))


def test_transport_uses_the_class_shares_to_mend_a_biased_text_head():
    g = torch.Generator().manual_seed(1)
    y = torch.arange(90) % 3
    x = torch.eye(3)[y] + 0.15 * torch.randn(90, 3, generator=g)
    z = 4 * x[:, None] + torch.tensor([3.0, 0.0, 0.0])  # class 0 is favoured
    f = FUSERS["ot"]
    fused = f.apply(f.fit([S], settings_of("ot"))[0], z, (x,))
    uniform = f.apply(f.fit([S], settings_of("ot", {"class_share": "uniform"}))[0], z, (x,))
    right = [(p.argmax(1) == y).float().mean() for p in (z.mean(1), uniform)]
    assert right[1] > right[0]
    # "predicted" keeps the head's own shares
    torch.testing.assert_close(
        fused.exp().mean(0), torch.softmax(z.mean(1), 1).mean(0), atol=5e-3, rtol=0
    )
