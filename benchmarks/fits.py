"""How fast fusers are fitted: all support sets of a dataset at once, against one by one and against a plain loop.

    python benchmarks/fits.py

Made-up support sets of five backbones (128 dimensions), five seeds, on one thread. The peers do the same work: for
`nlc` a torch module trained by torch.optim, for `c_log_avg` scipy's scalar minimiser for each backbone, for
`linear_probe_concat` scikit-learn's logistic regression over the same folds and penalties. Prints fits per second and
the ratio to the peer.
"""

import time
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression

from clipray.numerics.contracts import Support
from clipray.numerics.fewshot.prototypes import Probe, joined
from clipray.numerics.fusers import FUSERS, nlc
from clipray.numerics.solvers.logistic import folds

BACKBONES, DIM, SEEDS = 5, 128, 5
SHAPES = ((1, 10), (16, 10), (1, 100), (16, 100))  # shots, classes


def made(shots: int, classes: int, seed: int) -> Support:
    """A support set of random embeddings and logits."""
    generator, images = torch.Generator().manual_seed(seed), shots * classes
    embeddings = tuple(torch.randn(images, DIM, generator=generator) for _ in range(BACKBONES))
    logits_KMC = 3 * torch.randn(images, BACKBONES, classes, generator=generator)
    return Support(logits_KMC, embeddings, torch.arange(images) % classes, seed=seed)


def module(support: Support) -> None:
    """The peer of `nlc`: the same network, loss, optimiser and number of steps in plain torch."""
    how = nlc.Gate()
    torch.manual_seed(support.seed)
    x_KD, z_KMC, images = (
        nlc.inputs(support.embeddings, how.normalise_inputs),
        support.logits_KMC,
        len(support.labels_K),
    )
    network = torch.nn.Sequential(
        torch.nn.Linear(x_KD.shape[1], how.hidden),
        torch.nn.ReLU(),
        torch.nn.Linear(how.hidden, BACKBONES),
    )
    optimiser = torch.optim.Adam(network.parameters(), lr=how.rate, weight_decay=how.weight_decay)
    loader = [rows for _ in range(how.epochs) for rows in torch.randperm(images).split(how.batch)][
        : how.max_steps
    ]
    for rows in loader:
        fused = (network(x_KD[rows])[..., None] * z_KMC[rows]).sum(1)
        loss = torch.nn.functional.cross_entropy(fused, support.labels_K[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def scalar(support: Support) -> None:
    """The peer of `c_log_avg`: a temperature per backbone by scipy."""
    labels, rows = support.labels_K.numpy(), np.arange(len(support.labels_K))
    for z_KC in support.logits_KMC.double().numpy().transpose(1, 0, 2):

        def nll(log_beta: float, z=z_KC) -> float:
            return -log_softmax(np.exp(log_beta) * z, axis=1)[rows, labels].sum()

        minimize_scalar(nll, bounds=(-7, 7), method="bounded")


def probe(support: Support) -> None:
    """The peer of `linear_probe_concat`: the penalty with the least held-out NLL, then a fit on all images."""
    how, labels = Probe(), support.labels_K.numpy()
    x = joined(support.embeddings).numpy()
    x, fold = x - x.mean(0), folds(support.labels_K, how.folds).numpy()

    def fit(penalty: float, rows: np.ndarray) -> LogisticRegression:
        return LogisticRegression(C=1 / penalty, max_iter=1000).fit(x[rows], labels[rows])

    penalty = how.one_shot
    if fold.any():
        losses = []
        for candidate in how.penalties:
            own = [
                fit(candidate, fold != f).predict_log_proba(x[fold == f])
                for f in range(fold.max() + 1)
            ]
            losses.append(
                -sum(p[np.arange(len(p)), labels[fold == f]].sum() for f, p in enumerate(own))
            )
        penalty = how.penalties[int(np.argmin(losses))]
    fit(penalty, np.ones(len(x), bool))


PEERS = {"nlc": module, "c_log_avg": scalar, "linear_probe_concat": probe}


def per_second(work: Callable[[], object], fits: int, least: float = 1.0) -> float:
    """Fits per second of repeated work, after one run to warm up."""
    work()
    start, runs = time.perf_counter(), 0
    while time.perf_counter() - start < least:
        work()
        runs += 1
    return fits * runs / (time.perf_counter() - start)


def fitted(name: str, supports: Sequence[Support]) -> list:
    """The fuser's states."""
    return FUSERS[name].fit(supports, FUSERS[name].settings)


def main() -> None:
    """Print a line per fuser and shape."""
    torch.set_num_threads(1)
    warnings.filterwarnings(
        "ignore", message="The number of unique classes"
    )  # one image per class is meant
    print(
        "fuser                shots classes   at once  one by one  plain loop   ratio to the loop"
    )
    for name, peer in PEERS.items():
        for shots, classes in SHAPES:
            supports = [made(shots, classes, seed) for seed in range(SEEDS)]
            rates = (
                per_second(lambda name=name, all_=supports: fitted(name, all_), SEEDS),
                per_second(
                    lambda name=name, all_=supports: [fitted(name, [one]) for one in all_], SEEDS
                ),
                per_second(lambda peer=peer, all_=supports: [peer(one) for one in all_], SEEDS),
            )
            at_once, single, plain = rates
            print(
                f"{name:20} {shots:5} {classes:7} {at_once:9.1f} {single:11.1f} {plain:11.1f} {at_once / plain:12.2f}"
            )


if __name__ == "__main__":
    main()
