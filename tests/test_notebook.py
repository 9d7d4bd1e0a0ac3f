"""The door for notebooks: arrays of any library in, plain errors out."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

import clipray

LOGITS = np.random.default_rng(0).normal(size=(30, 2, 4))
LABELS = np.arange(30) % 4


def test_log_avg_is_the_mean_of_log_probabilities():
    mean = log_softmax(log_softmax(LOGITS, -1).mean(1), -1)
    for logits in (LOGITS, torch.from_numpy(LOGITS), LOGITS.tolist()):
        np.testing.assert_allclose(clipray.apply("log_avg", logits), mean, atol=1e-5)


@pytest.mark.parametrize("name", clipray.fusers())
def test_every_fuser_fits_and_applies(name):
    embeddings = [np.random.default_rng(m).normal(size=(30, 5 + m)) for m in range(2)]
    fitted = clipray.fit(name, LOGITS, LABELS, embeddings)
    log_probs = fitted.apply(LOGITS, embeddings)
    assert log_probs.shape == (30, 4)
    np.testing.assert_allclose(np.exp(log_probs).sum(1), 1, atol=1e-3)


def test_complementarity_is_the_same_from_logits():
    right = LOGITS.argmax(-1) == LABELS[:, None]
    assert clipray.complementarity(right) == clipray.complementarity(LOGITS, LABELS)
    assert clipray.complementarity(right)["oracle"] == right.any(1).mean()
    table = clipray.by_backbone(LOGITS, LABELS, names=["a", "b"])
    np.testing.assert_allclose(table["accuracy"], right.mean(0))
    figure = clipray.plot_pairs(clipray.pairs(right)["kappa"], "kappa")
    assert len(figure.axes[0].texts) == 4


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: clipray.fit("nlcc"), "no fuser 'nlcc'"),
        (lambda: clipray.fit("nlc"), "learns from labels"),
        (lambda: clipray.fit("nlc", LOGITS), "give `labels`"),
        (lambda: clipray.fit("nlc", LOGITS, LABELS), "looks at embeddings"),
        (lambda: clipray.fit("c_log_avg", LOGITS, LABELS + 1), "labels lie in 0..3"),
        (lambda: clipray.fit("c_log_avg", LOGITS, LABELS[1:]), "labels are 30 whole numbers"),
        (lambda: clipray.apply("log_avg", LOGITS[0]), "has 2 dimensions, not 3"),
        (lambda: clipray.apply("log_avg", LOGITS * np.nan), "not finite"),
        (lambda: clipray.complementarity(LOGITS), "logits need `labels`"),
        (lambda: clipray.complementarity([[2, 0]]), "other numbers than 0 and 1"),
        (lambda: clipray.fit("log_avg", unlabelled=(LOGITS, None)), "does not learn from unlab"),
    ],
)
def test_what_does_not_fit_is_told(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_scores_of_a_workspace_that_has_none(tmp_path):
    with pytest.raises(ValueError, match="none"):
        clipray.scores(str(tmp_path))
