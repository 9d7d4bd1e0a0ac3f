"""What came out of a campaign, in sentences: synergy first, then the gain over a single backbone, bounds, faults."""

from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa

from clipray.report.gains import FEW, Gain, interval, points, synergies
from clipray.report.summary import (
    ALONE,
    ORACLE,
    Row,
    alike_names,
    backbones,
    best_fused,
    compared,
    leaderboard,
    of_support,
    percent,
    short_classes,
)
from clipray.shots import ALL
from clipray.shots import words as shots_words

NAMED = 5  # datasets that a sentence on failures names


def headline(
    scores: pa.Table,
    failures: pa.Table | None = None,
    seen: Mapping[str, Sequence[str]] | None = None,
) -> dict:
    """Say what came out, in plain words and in numbers.

    Args:
        scores: `schema.SCORES`.
        failures: `schema.FAILURES`; what failed is said last.
        seen: by dataset, the backbones in whose pretraining data its data stand.

    Returns:
        `text` (sentences), and of the best fuser at the most shots `method, head, shots`; `synergy, synergy_low,
        synergy_high` (fractions) over itself on one backbone with the same labels, where that was measured; `gain` (a
        fraction, with `gain_low, gain_high`) over the best single backbone; `wins` out of `compared` datasets;
        `datasets, backbones`; `oracle_gain` where there is an oracle. Without a fuser, `text` and the counts.
    """
    rows, names = leaderboard(scores), backbones(scores)
    datasets = max((row.datasets for row in rows), default=0)
    found: dict = {"text": [], "backbones": len(names), "datasets": datasets}
    fused = [row for row in rows if row.kind == "fuser"]
    most = max((row.shots for row in fused), default=0)
    best = best_fused(rows, most)
    if best is not None and compared(best) is not None:
        found |= _numbers(best)
        found["text"] += _main(scores, rows, best, len(names), seen or {})
        rivals = sum(row.shots == most for row in fused)
        if rivals > 1:
            found["text"].append(
                f"{best.method} is the best of {rivals} fusers there, judged by these very results."
            )
    free = best_fused(rows, 0)
    if most and free is not None and free.on_test is not None:
        found["text"].append(
            f"Without any label, {free.method} {_moves(free.on_test.mean)} "
            f"{interval(free.on_test)} against the best single backbone of each test set, "
            "known only in hindsight."
        )
    oracle = next((row for row in rows if row.method == ORACLE and row.on_test), None)
    if oracle is not None:
        found["oracle_gain"] = oracle.on_test.mean
        found["text"].append(
            f"Choosing the right backbone for every single image, which only an oracle can, would gain "
            f"{points(oracle.on_test.mean)} points {interval(oracle.on_test)}: a bound on choosing among the "
            "backbones' answers, not on fusing them."
        )
    if not found["text"]:
        found["text"].append(
            f"{len(names)} backbones were measured on {datasets} datasets; none was fused."
        )
    found["text"] += _unclear(scores, datasets)
    found["text"] += _support_sets(scores, datasets)
    found["failed_images"], words = _failures(failures)
    found["text"] += words
    return found


def _numbers(best: Row) -> dict:
    """The headline's numbers."""
    gained = compared(best)
    found = {"method": best.method, "head": best.head, "shots": best.shots}
    if best.synergy is not None:
        found |= {f"synergy{end}": value for end, value in _ends(best.synergy)}
    shown = best.synergy or gained
    found |= {f"gain{end}": value for end, value in _ends(gained)}
    found |= {"wins": shown.wins, "compared": shown.wins + shown.ties + shown.losses}
    return found


def _ends(gained: Gain) -> Iterator[tuple[str, float]]:
    yield "", gained.mean
    if gained.low is not None:
        yield "_low", gained.low
        yield "_high", gained.high


def _main(
    scores: pa.Table,
    rows: list[Row],
    best: Row,
    backbones: int,
    seen: Mapping[str, Sequence[str]],
) -> Iterator[str]:
    """The sentences on the best fuser."""
    if best.synergy is None:
        yield _sentence(best, compared(best), backbones, _over_single(best))
        return
    same = "the same method with the same labels on one backbone"
    yield _sentence(best, best.synergy, backbones, same)
    alone = next(
        (
            row
            for row in rows
            if row[:2] == (best.head, ALONE + best.method) and row.shots == best.shots
        ),
        None,
    )
    if alone is not None:
        yield (
            f"That one backbone, chosen on the support set, has {percent(alone.top1)} % on average, and all together "
            f"have {percent(best.top1)} %: the difference is the synergy of the backbones."
        )
    gained = compared(best)
    yield (
        f"Over {_over_single(best)} it {_moves(gained.mean)} {interval(gained)}; that figure also holds what "
        "the labels teach a single backbone."
    )
    place = (best.head, best.method, best.shots)
    known = [dataset for dataset, names in seen.items() if names]
    unseen = synergies(scores, known).get(place)
    if known and unseen is not None:
        number = unseen.wins + unseen.ties + unseen.losses
        over = f" over {number} datasets" if number >= FEW else ""  # else the interval says it
        yield (
            f"Without the datasets whose data stand in a backbone's pretraining data ({', '.join(sorted(known))}) the "
            f"synergy is {points(unseen.mean)} points {interval(unseen)}{over}."
        )


def _over_single(best: Row) -> str:
    """What the gain is over, in words."""
    kind = "zero-shot " if best.head.startswith("zero_shot") and "probe" not in best.head else ""
    picked = "picked with the same labels"
    if not best.shots:
        picked = "of each test set, known only in hindsight"
    return f"the best single {kind}backbone ({picked})"


def _sentence(best: Row, against: Gain, backbones: int, reference: str) -> str:
    labels = _labels(best.shots)
    total = against.wins + against.ties + against.losses
    where = "on the one dataset" if total == 1 else f"on average over {total} datasets"
    wins = "all" if against.wins == total else "none" if not against.wins else f"{against.wins}"
    better = "" if total == 1 else f", and is better on {wins} of them"
    return (
        f"Fusing {backbones} backbones with {best.method} {labels} {_moves(against.mean)} "
        f"{interval(against)} of top-1 accuracy over {reference} {where}{better}."
    )


def _labels(shots: int) -> str:
    if not shots:
        return "without labels"
    if shots == ALL:
        return "with all labelled images"
    return f"at {shots} labelled image{'s' if shots > 1 else ''} per class"


def _unclear(scores: pa.Table, datasets: int) -> Iterator[str]:
    """What to say of class names that a text tower cannot tell apart."""
    unclear = alike_names(scores)
    if unclear:
        worst = max(unclear, key=lambda dataset: unclear[dataset][0])
        share, name = unclear[worst]
        yield (
            f"On {len(unclear)} of {datasets} datasets some class names are the same to a backbone's text "
            f"tower (most: {percent(share)} % of {worst}, to {name}): zero-shot cannot tell these classes apart."
        )


def _support_sets(scores: pa.Table, datasets: int) -> Iterator[str]:
    """What to say of support sets that are smaller, or fewer, than was asked for."""
    short = short_classes(scores)
    if not short.empty:
        worst = short.loc[short["value"].idxmax()]
        yield (
            f"On {short['dataset'].nunique()} of {datasets} datasets some classes have fewer images than shots, and "
            f"give what they have (most: {worst['value']:.0f} classes of {worst['dataset']} at "
            f"{shots_words(worst['shots'])})."
        )
    wide = of_support(scores).pivot_table(
        index=["dataset", "shots"], columns="metric", values="value"
    )
    if {"support_sets", "seeds"} <= set(wide.columns):
        same = wide[wide["support_sets"] < wide["seeds"]].reset_index()
        for shots, part in same[same["shots"] != ALL].groupby("shots"):
            yield (
                f"At {shots_words(shots)} all seeds draw the same images of {', '.join(part['dataset'])}: "
                "one support set, without a spread over seeds."
            )


def _failures(failures: pa.Table | None) -> tuple[int, list[str]]:
    """How many images failed, and a sentence on each whole that did, and on each backbone that lacks some images."""
    rows = failures.to_pylist() if failures is not None else []
    images = {(row["dataset"], row["split"], row["image_id"]) for row in rows if row["image_id"]}
    words = _wholes([row for row in rows if not row["image_id"]])
    alone = [
        (row["dataset"], row["backbone"]) for row in rows if row["image_id"] and row["backbone"]
    ]
    for dataset, backbone in sorted(set(alone)):
        number = alone.count((dataset, backbone))
        words.append(
            f"{number} images of {dataset} have no embedding of {backbone}: they are in no method's score."
        )
    return len(images), words


def _wholes(rows: list[dict]) -> list[str]:
    """A sentence for each backbone, or the datasets themselves, and each reason to leave them out."""
    places: dict[tuple, dict[str, None]] = {}
    for row in rows:
        who = (row["backbone"], row["error"].rstrip("."))
        places.setdefault(who, {})[row["dataset"] or "every dataset"] = None
    words = []
    for (backbone, reason), datasets in places.items():
        names = list(datasets)
        more = f" and {len(names) - NAMED} others" if len(names) > NAMED else ""
        where = ", ".join(names[:NAMED]) + more
        verb = "is" if len(names) == 1 else "are"
        who = f"{backbone} is left out of {where}" if backbone else f"{where} {verb} left out"
        words.append(f"{who}: {reason}.")
    return words


def _moves(gained: float) -> str:
    return (
        f"gains {points(gained)} points"
        if gained >= 0
        else f"loses {points(-gained).lstrip('+')} points"
    )
