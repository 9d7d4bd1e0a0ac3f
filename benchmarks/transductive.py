"""What fusion gains from the batch, on embeddings that are there: `python benchmarks/transductive.py FOLDER/SET`.

FOLDER/SET holds `<backbone>.npz` (`image_features` N×D, `text_features` C×D) and `labels.npy`. Half of the images are
the test images, the rest is where support images and unlabelled train images come from. Prints Markdown tables: without
labels over batches of every kind, then over shots; means over splits, or over subsets of backbones if asked for, with
95 % Student intervals.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from clipray.numerics.contracts import Support, unit
from clipray.numerics.fusers import FUSERS
from clipray.numerics.measures.intervals import mcnemar

SCALE = 100.0  # CLIP's own; the files hold none
LEVEL = 0.05
Rights = dict[tuple, list[Tensor]]  # bool_N of each batch or split
BLIND = ("log_avg", "ot", "guarded")
SHOTS = (0, 1, 2, 4, 8, 16)
SINGLE = (
    "log_avg",
    *("linear_probe_concat", "proto_avg", "ncm_concat", "tip_adapter_avg", "c_log_avg"),
    *("proto_fusion", "anchored", "nlc", "guarded_single"),
)
ADAPTED = ("guarded_pool", "ot", "transductive", "guarded")


class Data(NamedTuple):
    """Logits, embeddings and labels of some images, of some backbones."""

    logits_NMC: Tensor
    embeddings: tuple[Tensor, ...]
    labels_N: Tensor

    def take(self, rows: np.ndarray) -> "Data":
        """These images only."""
        rows = torch.as_tensor(rows, dtype=torch.int64)
        spaces = tuple(e[rows] for e in self.embeddings)
        return Data(self.logits_NMC[rows], spaces, self.labels_N[rows])


def read(folder: Path, names: Sequence[str]) -> Data:
    """The images of a folder as these backbones see them."""
    logits, spaces = [], []
    for name in names:
        with np.load(folder / f"{name}.npz") as file:
            image_ND, text_CD = (
                unit(torch.from_numpy(file[f"{kind}_features"]).float())
                for kind in ("image", "text")
            )
        logits.append(SCALE * image_ND @ text_CD.T)
        spaces.append(image_ND)
    labels_N = torch.from_numpy(np.load(folder / "labels.npy")).long()
    return Data(torch.stack(logits, 1), tuple(spaces), labels_N)


def batches(labels_N: np.ndarray, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Batches of every kind, by name: a random half, few images a class, few classes, skewed shares."""
    g = np.random.default_rng(seed)
    order, classes = g.permutation(len(labels_N)), int(labels_N.max()) + 1
    own = [order[labels_N[order] == c] for c in range(classes)]
    yield "half of the images", order[: len(order) // 2]
    for k in (1, 2, 5, 10):
        yield f"{k} a class", np.concatenate([rows[:k] for rows in own])
    for present in (1, 2, 3, 5, 10):
        kept = g.permutation(classes)[:present]
        yield (
            f"{present} class{'es' if present > 1 else ''}",
            np.concatenate([own[c][: len(own[c]) // 2] for c in kept]),
        )
    for alpha in (0.1, 0.3, 1.0):
        share_C = g.dirichlet(np.full(classes, alpha))
        counts_C = (share_C * len(order) / 3).round().astype(int)
        rows = [rows[:n] for rows, n in zip(own, counts_C, strict=True)]
        yield f"Dirichlet {alpha}", np.concatenate(rows)


def percent(right_N: Tensor) -> float:
    """Top-1 in percent."""
    return 100 * float(right_N.double().mean())


def scored(name: str, support: Support, test: Data, pool: Data) -> Tensor:
    """Fit a fuser, let the images that its settings name teach it; which test images it has right, bool_N."""
    fuser = FUSERS[name]
    (state,) = fuser.fit([support], fuser.settings)
    teacher = {"batch": test, "train": pool}.get(getattr(fuser.settings, "unlabelled", "none"))
    if fuser.adapt and teacher is not None:
        state = fuser.adapt(state, teacher.logits_NMC, teacher.embeddings)
    return fuser.apply(state, test.logits_NMC, test.embeddings).argmax(1) == test.labels_N


def supported(data: Data, rows: np.ndarray, shots: int, seed: int) -> Support:
    """The first `shots` of these images in each class."""
    labels = data.labels_N.numpy()[rows]
    kept = [rows[labels == c][:shots] for c in range(data.logits_NMC.shape[2])]
    chosen = data.take(np.concatenate(kept))
    return Support(chosen.logits_NMC, chosen.embeddings, chosen.labels_N, seed)


def told(values: Sequence[float]) -> str:
    """A mean and its interval."""
    mean, count = np.mean(values), len(values)
    half = stats.t.ppf(0.975, count - 1) * np.std(values, ddof=1) / count**0.5 if count > 1 else 0
    return f"{mean:.1f} ± {half:.1f}"


def blind(data: Data, seeds: Sequence[int], draws: int) -> Rights:
    """Without labels, by kind of batch and fuser: which images are right in each batch, some draws for every seed."""
    rights: Rights = {}
    if draws > 1:
        seeds = [1000 * seed + draw for seed in seeds for draw in range(draws)]
    for seed in seeds:
        for kind, rows in batches(data.labels_N.numpy(), seed):
            batch, nothing = data.take(rows), supported(data, rows, 0, seed)
            for name in BLIND:
                own = rights.setdefault((kind, name), [])
                own.append(scored(name, nothing, batch, batch))
    return rights


def blind_table(subsets: Sequence[Rights]) -> None:
    """Print what `blind` gives of each subset of backbones.

    The last column counts the batches on which `guarded` is below `log_avg`, and those beyond chance (McNemar, 5 %).
    """
    names = " | ".join(f"`{name}`" for name in BLIND)
    print(f"| batch | {names} | `guarded` − `log_avg`, worst | batches, below, beyond chance |")
    print("|---" * (len(BLIND) + 3) + "|")
    for kind in dict.fromkeys(kind for kind, _ in subsets[0]):
        means = {name: [each[kind, name] for each in subsets] for name in BLIND}
        pairs = [
            pair
            for ours, theirs in zip(means["guarded"], means["log_avg"], strict=True)
            for pair in zip(ours, theirs, strict=True)
        ]
        gain = [percent(a) - percent(b) for a, b in pairs]
        below = sum(each < 0 for each in gain)
        lost = sum(mcnemar(a, b)[2] < LEVEL and a.sum() < b.sum() for a, b in pairs)
        over = np.subtract(_means(means["guarded"]), _means(means["log_avg"]))
        cells = [told(_means(means[name])) for name in BLIND]
        cells += [f"{told(over)}, {min(gain):+.1f}", f"{len(gain)}, {below}, {lost}"]
        print(f"| {kind} | {' | '.join(cells)} |", flush=True)


def _means(subsets: Sequence[Sequence[Tensor]]) -> list[float]:
    """Top-1 of each batch of a single subset, or of each subset's batches on mean."""
    values = [[percent(right_N) for right_N in own] for own in subsets]
    return values[0] if len(values) == 1 else [float(np.mean(own)) for own in values]


def over_shots(data: Data, seeds: Sequence[int]) -> Rights:
    """With labels, by method and shots, which test images are right in each split."""
    rights: Rights = {}
    for seed in seeds:
        order = np.random.default_rng(seed).permutation(len(data.labels_N))
        test, rest = data.take(order[: len(order) // 2]), order[len(order) // 2 :]
        for k in SHOTS:
            support = supported(data, rest, k, seed)
            for name in (*SINGLE, *ADAPTED):
                if k or FUSERS[name].without_labels or not FUSERS[name].needs_labels:
                    right_N = scored(name, support, test, data.take(rest))
                    rights.setdefault((name, k), []).append(right_N)
    return rights


def shots_table(subsets: Sequence[Rights]) -> None:
    """Print what `over_shots` gives of each subset: one image at a time, with train images, with the batch."""
    print(f"| method | {' | '.join(f'{k} shot' for k in SHOTS)} |")
    print("|---" * (len(SHOTS) + 1) + "|")
    for name in (*SINGLE, *ADAPTED):
        own = [[each.get((name, k)) for each in subsets] for k in SHOTS]
        cells = [told(_means(rights)) if rights[0] else "" for rights in own]
        print(f"| `{name}` | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Parse the arguments and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--backbones", nargs="*", help="names; default: all")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--draws", type=int, default=1, help="batches of each kind for every seed")
    parser.add_argument("--blind", action="store_true", help="only without labels")
    parser.add_argument("--subsets", type=int, default=0, help="random subsets of three instead")
    args = parser.parse_args()
    names = args.backbones or sorted(path.stem for path in args.folder.glob("*.npz"))
    chosen = [names]
    if args.subsets:
        g = np.random.default_rng(args.first_seed)
        chosen = [sorted(g.choice(names, 3, replace=False).tolist()) for _ in range(args.subsets)]
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    without, with_labels = [], []
    for subset in chosen:
        print(f"{', '.join(subset)}\n", flush=True)
        data = read(args.folder, subset)
        without.append(blind(data, seeds, args.draws))
        if not args.blind:
            with_labels.append(over_shots(data, seeds))
    blind_table(without)
    print()
    if with_labels:
        shots_table(with_labels)


if __name__ == "__main__":
    main()
