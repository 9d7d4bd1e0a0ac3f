import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torchmetrics.functional.classification import multiclass_calibration_error

from clipray.numerics.measures.outcomes import METRICS, PER_IMAGE, aurc, ece_mass, ece_width


@pytest.fixture(scope="module")
def case():
    g = torch.Generator().manual_seed(0)
    z = 2 * torch.randn(500, 7, generator=g)
    return torch.log_softmax(z, 1), torch.randint(0, 6, (500,), generator=g)  # class 6 never occurs


def test_accuracies_and_losses_equal_scikit_learn(case):
    log_p, y = case
    p = log_p.double().exp().numpy()
    p /= p.sum(1, keepdims=True)
    kinds = np.arange(7)
    mean = {name: f(log_p, y).mean().item() for name, f in PER_IMAGE.items()}
    assert mean["top1"] == sk.accuracy_score(y, p.argmax(1))
    assert mean["top5"] == pytest.approx(sk.top_k_accuracy_score(y, p, k=5, labels=kinds))
    assert mean["nll"] == pytest.approx(sk.log_loss(y, p, labels=kinds), rel=1e-6)
    assert mean["brier"] == pytest.approx(
        sk.brier_score_loss(y, p, labels=kinds, scale_by_half=False), rel=1e-6
    )
    with pytest.warns(UserWarning, match="y_pred contains"):
        expected = sk.balanced_accuracy_score(y, p.argmax(1))
    assert METRICS["balanced_accuracy"](log_p, y).item() == pytest.approx(expected)


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_ece_of_equal_width_equals_torchmetrics(case, bins):
    log_p, y = case
    theirs = multiclass_calibration_error(log_p.exp(), y, 7, n_bins=bins, norm="l1").item()
    assert ece_width(log_p, y, bins).item() == pytest.approx(theirs, abs=1e-6)


def test_ece_of_equal_mass_equals_a_plain_loop(case):
    log_p, y = case
    confidence, right = log_p.double().exp().max(1).values.numpy(), (log_p.argmax(1) == y).numpy()
    order = confidence.argsort()
    parts = np.array_split(order, 15)
    expected = sum(
        len(part) / 500 * abs(right[part].mean() - confidence[part].mean()) for part in parts
    )
    assert ece_mass(log_p, y, 15).item() == pytest.approx(expected, abs=1e-9)


def test_aurc_equals_a_plain_loop_and_averages_over_orders_of_ties(case):
    log_p, y = case
    confidence, wrong = log_p.double().exp().max(1).values.numpy(), (log_p.argmax(1) != y).numpy()
    order = (-confidence).argsort()
    assert aurc(log_p, y).item() == pytest.approx(
        np.mean([wrong[order[: n + 1]].mean() for n in range(500)])
    )
    equal = torch.tensor([[0.7, 0.3], [0.7, 0.3]]).log()
    # right first: (0 + 1/2) / 2; wrong first: (1 + 1/2) / 2; their mean is 1/2
    assert aurc(equal, torch.tensor([0, 1])).item() == pytest.approx(0.5)


@pytest.mark.parametrize("name", METRICS)
def test_the_order_of_the_rows_does_not_matter(name, case):
    log_p, y = (t.clone() for t in case)
    log_p[:250] = log_p[0]
    order = torch.randperm(500, generator=torch.Generator().manual_seed(1))
    ours, theirs = METRICS[name](log_p, y).mean(), METRICS[name](log_p[order], y[order]).mean()
    torch.testing.assert_close(ours, theirs)


def test_fewer_than_five_classes_have_a_perfect_top5():
    assert METRICS["top5"](torch.zeros(3, 2), torch.tensor([0, 1, 1])).tolist() == [1, 1, 1]
