"""The section on robustness: what is stored of it beside a report, and what the page shows."""

import base64
import io
from collections.abc import Mapping
from typing import Any

import pandas as pd
import pyarrow as pa

from clipray import schema
from clipray.report import canvas
from clipray.shots import words
from clipray.store import Store

SCORES, TABLE, SUMMARY = "robustness.parquet", "robustness.csv", "robustness.json"
SHEETS = "contact-sheets"
SHOWN = 4  # methods in a chart, and contact sheets in a page
REFERENCE = "best_single_on_support"


def write(
    store: Store,
    folder: str,
    scores: pa.Table,
    table: pd.DataFrame,
    summary: dict[str, Any],
    sheets: Mapping[str, bytes],
) -> None:
    """Write what the section is made of.

    Args:
        scores: `schema.SCORES` of clean and perturbed images. table: by dataset, perturbation, severity and method.
        summary: numbers for the page. sheets: a JPEG by dataset.
    """
    store.write_table(f"{folder}/{SCORES}", scores.cast(schema.SCORES))
    store.write(f"{folder}/{TABLE}", table.to_csv(index=False, float_format="%.6g").encode())
    for name, data in sheets.items():
        store.write(f"{folder}/{SHEETS}/{name}.jpg", data)
    store.write_json(f"{folder}/{SUMMARY}", summary | {"sheets": sorted(sheets)})


def section(store: Store, folder: str) -> dict[str, Any] | None:
    """Read what the page shows; None where robustness was not measured."""
    place = folder + "/" if folder else ""
    told = store.read_json(f"{place}{SUMMARY}")
    if told is None:
        return None
    sheets = []
    for name in told["sheets"][:SHOWN]:
        data = base64.b64encode(store.read(f"{place}{SHEETS}/{name}.jpg")).decode()
        sheets.append({"dataset": name, "uri": f"data:image/jpeg;base64,{data}"})
    methods = [row for row in told["methods"] if row["kind"] != "bound"]
    methods.sort(key=lambda row: -row["top1"])
    return told | {
        "sheets": sheets,
        "methods": methods,
        "sentences": sentences(told),
        "chart": by_severity(told),
        "backbones": [key for key in told["by_perturbation"][0] if key != "perturbation"],
    }


def _fewer(drop: float) -> str:
    """A relative drop in words; of few images a perturbation may get more of them right.

    >>> _fewer(0.2), _fewer(-0.1)
    ('20 % fewer', '10 % more')
    """
    return f"{100 * abs(drop):.0f} % {'fewer' if drop >= 0 else 'more'}"


def sentences(told: dict[str, Any]) -> list[str]:
    """What the numbers say, in words."""
    number, all_ = told["another_is_best"], told["perturbations"]
    said = [
        f"{told['best_on_clean']} is the best single backbone on clean images; under {number} of {all_} perturbations"
        " another one is."
    ]
    fused = [row for row in told["methods"] if row["kind"] == "fuser"]
    singles = [row for row in told["methods"] if row["kind"] == "single"]
    if fused and singles:
        best, alone = (max(rows, key=lambda row: row["top1"]) for rows in (fused, singles))
        said.append(
            f"Under perturbation {name_of(best)}, fitted on clean images, has {100 * best['top1']:.1f} % of the images"
            f" right ({_fewer(best['relative_drop'])} than on clean ones), the best single backbone"
            f" {100 * alone['top1']:.1f} % ({_fewer(alone['relative_drop'])})."
        )
    pairs = [pair["spearman"][0] for pair in told["agreements"]]
    if pairs:
        said.append(
            "Spearman's rank correlation of two backbones' drops over the perturbations is"
            f" {sum(pairs) / len(pairs):+.2f} on average, {min(pairs):+.2f} for the least alike pair (1: the same"
            " perturbations hurt both most)."
        )
    return [text.replace("-0.", "−0.") for text in said]


def name_of(row: dict[str, Any]) -> str:
    """A method with its number of shots."""
    shots = row["shots"]
    name = row["method"].removeprefix("single/")
    return f"{name} ({words(shots)})" if shots else name


def by_severity(told: dict[str, Any]) -> canvas.Chart | None:
    """Lines: mean top-1 by severity of the oracle, the best fusers and the best single backbone."""
    rows = pd.DataFrame(told["by_severity"]["top1"])
    rows = rows[rows["head"] == told["head"]]
    if rows["severity"].nunique() < 2:
        return None
    means = rows[rows["severity"] > 0].groupby(["kind", "method", "shots"])["value"].mean()
    chosen = [("bound", "oracle", 0)] if ("bound", "oracle", 0) in means.index else []
    for kind, number in (("fuser", 2), ("single", 1)):
        own = means[means.index.get_level_values("kind") == kind].sort_values(ascending=False)
        chosen += list(own.index[:number])
    with canvas.styled():
        figure, axes = canvas.figure(canvas.WIDTH, 3.2)
        for place, (kind, method, shots) in enumerate(chosen[:SHOWN]):
            own = rows[(rows["method"] == method) & (rows["shots"] == shots)]
            own = own[own["kind"] == kind].sort_values("severity")
            axes.plot(
                own["severity"],
                100 * own["value"],
                color=canvas.SERIES[place],
                marker=canvas.MARKERS[place],
                label=name_of({"method": method, "shots": shots}),
            )
        axes.set_xticks(sorted(rows["severity"].unique()))
        axes.set_xlabel("severity (0: clean)")
        axes.set_ylabel("top-1, %")
        axes.grid(axis="y", color=canvas.RULE)
        axes.legend(frameon=False, labelcolor=canvas.INK)
        alt = "Mean top-1 by severity of perturbation"
        return canvas.Chart.of(figure, "severity", alt)


def jpeg(image: Any) -> bytes:
    """An image as a small JPEG file."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=72, optimize=True)
    return file.getvalue()
