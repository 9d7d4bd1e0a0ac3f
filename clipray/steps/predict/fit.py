"""One fusion, fitted and kept as a fused model.

Support sets, heads and fusers are those of an evaluation, so a fused model gives the very labels and probabilities that
the evaluation of the same method gives.
"""

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from clipray import secrets
from clipray.artefacts import classifiers, fused_model
from clipray.artefacts.evaluations import SCORES
from clipray.backbones import local_path
from clipray.config import Backbone
from clipray.errors import ConfigError
from clipray.shots import named
from clipray.steps.predict import afford, choose
from clipray.steps.predict.lesson import Lesson, needs_labels
from clipray.store import Store, provenance

if TYPE_CHECKING:
    from clipray.numerics.heads.cross_fit import View
    from clipray.steps.read import Split

FILES = ("weights", "config")  # of a backbone's entry


def make(store: Store, name: str, place: str, told: Lesson) -> None:
    """Fit and write the fused model; choose backbones and a method first where there are several."""
    from clipray.numerics.heads import head_of

    weights, train, drawn, draw = _read(store, told)
    what, kept = told.what, None
    if told.which_backbones:
        entry = told.methods[0].head
        head = head_of(entry.head, entry.settings_for(draw.shots, draw.seed))
        kept = afford.chosen(told, _support_under(head, told, train, draw, weights))
        told = afford.keeping(told, kept["backbones"])
        weights, train, drawn, draw = _read(store, told)
    held = []
    if told.train:
        held = choose.held_out(train, draw, weights, told.scales, told.folds, told.methods)
    several = len(told.methods) > 1
    method = choose.best(told.methods, held, told.by) if several else told.methods[0]
    head, heads, fuser = _fitted(method, train, drawn, draw, weights, told)
    about, tensors = _parts(told, method, (head, heads, fuser), weights)
    if told.cascade is not None:
        own, mapping = _cascade(told, method, head, train, draw, weights)
        tensors |= {f"cascade/{key}": tensor.numpy() for key, tensor in own.items()}
        about["cascade"] = mapping
    about = {"name": name, **about, "support": _support(train, draw)}
    about["figures"] = _figures(store, told, method, held, draw)
    if kept:
        about["figures"]["which_backbones"] = kept
    about["provenance"] = provenance()
    fused_model.write(store, place, what, secrets.clean(about), tensors, _files(told))


def _read(store: Store, told: Lesson) -> tuple[tuple, "Split | None", list, Any]:
    """Read the class vectors and the train split, and draw: as `_draws` gives them, empty where no label is used."""
    import torch

    weights = tuple(torch.from_numpy(classifiers.read(store, one)) for one in told.classifiers)
    if not told.train:
        return weights, None, [], None
    train = _train(store, told, len(weights[0]))
    return weights, train, *_draws(train, told, len(weights[0]))


def _support_under(head: Any, told: Lesson, train: "Split", draw: Any, weights: tuple) -> Any:
    """Show the support set as fusers see it, under a head that has not seen its images."""
    from clipray.numerics.heads import cross_fit
    from clipray.steps import spill

    views = _views(told, weights, train)
    problem = cross_fit.shots_of(views, train.labels_N, draw.rows_K, draw.seed)
    return cross_fit.support(head, problem, told.folds, spill.room)


def _train(store: Store, told: Lesson, classes: int) -> "Split":
    """The train split without the images that stand in the test split too, as an evaluation reads it."""
    from clipray.steps import read

    return read.read_apart(store, told.train, told.names, list(told.test_ids), classes)


def _draws(train: "Split", told: Lesson, classes: int) -> tuple[list, Any]:
    """Draw the support sets that are fitted together, and return them and the one that is meant."""
    from clipray.numerics import draws

    labels_N = train.labels_N.numpy()
    if not len(labels_N):
        raise ConfigError(
            f"dataset {told.dataset}: no image of its train split can be learned from"
        )
    drawn = draws.draws(train.names, labels_N, classes, [told.shots], range(told.seeds))
    own = [draw for draw in drawn if draw.seed == told.seed]
    return drawn, own[0] if own else drawn[0]  # where all seeds draw the same images there is one


def _fitted(
    method: choose.Candidate,
    train: "Split | None",
    drawn: list,
    draw: Any,
    weights: tuple,
    told: Lesson,
) -> tuple[Any, list, Any]:
    """Fit the head on each backbone, and the fuser, just as an evaluation does; return the head and the states."""
    import torch

    from clipray.numerics.contracts import nothing
    from clipray.numerics.fusers import FUSERS, settings_of
    from clipray.numerics.heads import cross_fit, head_of
    from clipray.steps import spill

    views = None if train is None else _views(told, weights, train)
    fuser, entry = FUSERS[method.fuser.fuser], method.fuser
    own = (0, 0) if draw is None else (draw.shots, draw.seed)
    head = head_of(method.head.head, method.head.settings_for(*own))
    if not head.needs_labels:
        head = head_of(method.head.head, method.head.settings_for(0, 0))
    if draw is None or not fuser.needs_labels:
        settings = settings_of(entry.fuser, entry.settings_for(0, 0))
        empty = torch.zeros(0, len(weights), len(weights[0]))
        none = tuple(torch.zeros(0, card["dim"]) for card in told.cards)
        (state,) = fuser.fit([nothing(empty, none)], settings)
    else:
        group = [
            one
            for one in drawn
            if entry.settings_for(one.shots, one.seed) == entry.settings_for(*own)
        ]
        supports = []
        for one in group:
            problem = cross_fit.shots_of(views, train.labels_N, one.rows_K, one.seed)
            kind = head_of(method.head.head, method.head.settings_for(one.shots, one.seed))
            supports.append(cross_fit.support(kind, problem, told.folds, spill.room))
        states = fuser.fit(supports, settings_of(entry.fuser, entry.settings_for(*own)))
        state = states[group.index(draw)]
    problem: list = [None] * len(weights)
    if head.needs_labels:
        problem = cross_fit.shots_of(views, train.labels_N, draw.rows_K, draw.seed)
    heads = head.fit(problem, head.settings)
    return head, heads, _taught(fuser, state, head, heads, views)


def _views(told: Lesson, weights: tuple, train: "Split") -> "list[View]":
    """List each backbone as it sees the train split."""
    from clipray.numerics.heads.cross_fit import View

    every = zip(told.backbones, weights, told.scales, train.embeddings, strict=True)
    return [View(name, w_CD, *scale, e_ND) for name, w_CD, scale, e_ND in every]


def _taught(fuser: Any, state: Any, head: Any, heads: list, views: "list[View] | None") -> Any:
    """Let unlabelled images teach the fuser's state, where the fuser has an `adapt` and its settings ask for it.

    They are those of the train split, also where an evaluation takes the very images to be labelled: these are not
    known when a model is fitted, and a state that they change would label no single image.
    """
    from clipray.numerics.heads import cross_fit

    wants = getattr(state.settings, "unlabelled", "none") != "none"
    if fuser.adapt is None or views is None or not wants:
        return state
    logits_NMC = cross_fit.logits(head, heads, views)
    return fuser.adapt(state, logits_NMC, tuple(view.embeddings_ND for view in views))


def _cascade(
    told: Lesson,
    method: choose.Candidate,
    head: Any,
    train: "Split",
    draw: Any,
    weights: tuple,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fit a cascade: stages with backbones in order of cost, and thresholds between them; tensors and a mapping.

    Raises:
        ConfigError: the cost of a backbone is not known.
    """
    from clipray.numerics.cascade.fitted import cascade_to_parts, fit_cascade
    from clipray.numerics.cascade.search import by_cost
    from clipray.numerics.cascade.thresholds import Target
    from clipray.numerics.fusers import settings_of

    gflops_M = [card.get("image_gflops") for card in told.cards]
    if None in gflops_M:
        raise ConfigError(
            "cascade: the cost of a backbone is not known, so they cannot be put in order"
        )
    support = _support_under(head, told, train, draw, weights)
    entry = method.fuser
    settings = settings_of(entry.fuser, entry.settings_for(draw.shots, draw.seed))
    order = by_cost(range(len(gflops_M)), gflops_M)
    wanted = told.cascade
    target = Target(wanted.max_accuracy_drop, wanted.max_gflops, wanted.confidence)
    fitted = fit_cascade(support, entry.fuser, settings, order, gflops_M, target, told.folds)
    return cascade_to_parts(fitted)


def _parts(
    told: Lesson, method: choose.Candidate, fitted: tuple, weights: tuple
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Collect what `fused_model.json` says, and the tensors."""
    from clipray.numerics.contracts import dump_settings
    from clipray.numerics.fusers import to_parts

    head, heads, state = fitted
    tensors = {f"classifier_CD/{m}": w_CD.numpy() for m, w_CD in enumerate(weights)}
    for m, one in enumerate(heads):
        tensors |= {f"head/{m}/{name}": t.numpy() for name, t in one.tensors.items()}
    own, mapping = to_parts(state)
    tensors |= {f"fuser/{name}": t.numpy() for name, t in own.items()}
    settings = dump_settings(head.settings)
    about = {
        "dataset": told.dataset,
        "classnames": list(told.prompts["classnames"]),
        "templates": list(told.prompts["templates"]),
        "precision": told.precision,
        "max_pixels": told.max_pixels,
        "backbones": [
            {"entry": entry, "origin": origin, "card": card}
            for entry, origin, card in zip(_entries(told), told.origins, told.cards, strict=True)
        ],
        "head": {
            "name": method.head.name,
            "head": method.head.head,
            "settings": settings,
            "numbers": [one.numbers for one in heads],
        },
        "fuser": {"name": method.fuser.name, "fuser": method.fuser.fuser, "state": mapping},
        "calibration": None,  # beyond what the fuser does itself: probabilities are those of an evaluation
        "cascade": None,
    }
    return about, tensors


def _entries(told: Lesson) -> list[dict[str, Any]]:
    """The backbones' entries; of given vectors nothing but the name."""
    if not told.specs:
        return [{"name": name} for name in told.backbones]
    return [_entry(spec) for spec in told.specs]


def _entry(spec: Backbone) -> dict[str, Any]:
    """Return a backbone's entry, with its own files by their names in the model's folder."""
    values = spec.model_dump(mode="json", exclude_defaults=True)
    for key in FILES:
        place = getattr(spec, key)
        if place and "://" not in place:
            values[key] = f"{fused_model.WEIGHTS}/{_file(spec, place)}"
    return values


def _file(spec: Backbone, place: str) -> str:
    return f"{spec.name}/{local_path(place).name}"


def _files(told: Lesson) -> dict[str, str]:
    """Find the backbones' files that go into the model's folder: those that lie on this machine alone."""
    return {
        _file(spec, place): str(local_path(place))
        for spec in told.specs
        for key in FILES
        if (place := getattr(spec, key)) and "://" not in place
    }


def _support(train: "Split | None", draw: Any) -> dict[str, Any]:
    """Say which labelled images the model has learned from."""
    if draw is None:
        return {"shots": 0, "images": 0}
    ids = "\n".join(sorted(train.image_ids[row] for row in draw.rows_K))
    return {
        "shots": named(draw.shots),
        "seed": draw.seed,
        "images": len(draw.rows_K),
        "classes_with_fewer_images": len(draw.short),
        "image_ids": hashlib.sha256(ids.encode()).hexdigest()[:32],
    }


def _figures(
    store: Store, told: Lesson, method: choose.Candidate, held: list, draw: Any
) -> dict[str, Any]:
    """Collect the method's numbers: held out on the support set, and on the test images where a campaign has them."""
    found: dict[str, Any] = {}
    if held:
        found["held_out"] = held[told.methods.index(method)]._asdict()
    if len(told.methods) > 1:
        found["chosen_by"] = f"held-out {told.by}, cross-validated on the support set"
        found["chosen_from"] = [
            {"head": one.head.name, "fuser": one.fuser.name, **score._asdict()}
            for one, score in zip(told.methods, held, strict=True)
        ]
    if not told.evaluation:
        return found
    frame = store.read_table(f"{told.evaluation}/{SCORES}").to_pandas()
    needs = needs_labels(method)
    at = (draw.shots, draw.seed) if draw is not None and needs else (0, 0)
    own = frame[
        (frame["head"] == method.head.name)
        & (frame["method"] == method.fuser.name)
        & (frame["shots"] == at[0])
        & (frame["seed"] == at[1])
    ]
    found["test"] = {
        row.metric: float(row.value) for row in own.itertuples() if row.value == row.value
    }
    return found
