"""What `nlc_meta` learns a dataset's weights from: episodes of other datasets' train splits."""

import numpy as np
import torch
from safetensors.torch import load, save

from clipray.artefacts.evaluations import Task
from clipray.artefacts.lessons import Episodes
from clipray.config import Fuser
from clipray.numerics.contracts import Support
from clipray.numerics.fusers import nlc_meta, settings_of
from clipray.numerics.heads import HEADS, cross_fit
from clipray.steps import read
from clipray.store import Store

HEAD = "zero_shot"  # whatever the head it is applied to: its features hold for any logits
FILE = "episodes.safetensors"


def make_episodes(store: Store, place: str, task: Task, told: dict, entry: Fuser) -> None:
    """Write the episodes of one dataset, made of its train split only.

    Args:
        told: their WHAT. entry: that of `nlc_meta` in the config.
    """
    tensors = {}
    for number, one in enumerate(episodes(store, task, settings_of(entry.fuser, entry.settings))):
        named = {
            "features_QEF": one.features_QEF,
            "logits_QEC": one.logits_QEC,
            "base_E": one.base_E,
        }
        tensors |= {f"{number}/{key}": value.contiguous() for key, value in named.items()}
        tensors[f"{number}/labels_Q"] = one.labels_Q.contiguous()
    store.write(f"{place}/{FILE}", save(tensors))
    store.finish(place, told)


def episodes(store: Store, task: Task, settings: nlc_meta.MetaGate) -> list[nlc_meta.Episode]:
    """Draw support sets from the train split, each with some of the other images there."""
    asked = Episodes()
    weights = read.read_classifiers(store, task)
    train = read.read_train(store, task, len(weights[0]))
    views = read.views_of(task, weights, train)
    head = HEADS[HEAD]
    states = head.fit([None] * len(views), head.settings)
    logits_NMC = cross_fit.logits(head, states, views)
    whole = Support(logits_NMC, train.embeddings, train.labels_N)
    sets = read.draw(store, task, train, len(weights[0]), asked.shots, asked.seeds)
    found = []
    for draw in sets.draws:
        rest = np.setdiff1d(np.arange(len(train.image_ids)), draw.rows_K)
        rest = np.random.default_rng(draw.seed).permutation(rest)[: asked.queries]
        if len(rest) >= asked.fewest:
            support, query = (whole.take(torch.from_numpy(rows)) for rows in (draw.rows_K, rest))
            found.append(nlc_meta.episode(support, query, settings, task.dataset))
    return found


def learn(store: Store, place: str, others: list[str], lesson: dict, entry: Fuser) -> None:
    """Learn a gate's weights from other datasets' episodes; they are kept in the artefact's manifest."""
    found = []
    for source in others:
        tensors = load(store.read(f"{source}/{FILE}"))
        for number in sorted({name.partition("/")[0] for name in tensors}, key=int):
            fields = [field for field in nlc_meta.Episode._fields if field != "group"]
            found.append(
                nlc_meta.Episode(*(tensors[f"{number}/{field}"] for field in fields), group=source)
            )
    settings = settings_of(entry.fuser, entry.settings)
    store.finish(place, lesson, weights=list(nlc_meta.learn(found, settings, nlc_meta.Learning())))
