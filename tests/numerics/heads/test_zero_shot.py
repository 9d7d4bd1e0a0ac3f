import torch

from clipray.numerics.heads.zero_shot import zero_shot


def test_zero_shot_equals_a_plain_loop():
    g = torch.Generator().manual_seed(0)
    e, t = torch.randn(5, 8, generator=g), torch.randn(3, 4, 8, generator=g)
    classifier = torch.nn.functional.normalize(t, dim=2).mean(1)
    z = zero_shot(e, classifier, 100.0, -2.0)
    for n in range(5):
        for c in range(3):
            mean = torch.stack([v / v.norm() for v in t[c]]).mean(0)
            cosine = torch.nn.functional.cosine_similarity(e[n], mean, dim=0)
            torch.testing.assert_close(z[n, c], 100 * cosine - 2, atol=1e-4, rtol=1e-4)


def test_half_precision_embeddings_are_computed_in_single():
    e = torch.randn(5, 8, generator=torch.Generator().manual_seed(0)).half()
    assert torch.equal(
        zero_shot(e, torch.eye(8), 1.0, 0.0), zero_shot(e.float(), torch.eye(8), 1.0, 0.0)
    )
