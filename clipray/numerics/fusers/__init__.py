"""Every fuser by name, and how a fitted one is taken apart and put together again."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from clipray.numerics.contracts import BySums, Fuser, State, changed, dump_settings, fit_nothing
from clipray.numerics.fewshot import prototypes
from clipray.numerics.fusers import (
    anchored,
    averages,
    convex,
    dynamic_selection,
    flops,
    guarded,
    nlc,
    nlc_meta,
    nlc_prior,
    ot,
    proto_fusion,
    singles,
    stacking,
    transductive,
)
from clipray.numerics.ties import exact_fuser


def settings_of(name: str, changes: Mapping[str, Any] | None = None) -> Any:
    """Return the settings of a fuser, the given ones changed.

    Raises:
        KeyError: no such fuser. TypeError: no such setting.

    >>> settings_of("vote_top3")
    Vote(best=3)
    """
    if name not in FUSERS:
        raise KeyError(f"no fuser {name!r}; known: {', '.join(FUSERS)}")
    return changed(FUSERS[name].settings, changes or {})


def to_parts(state: State) -> tuple[dict[str, Tensor], dict]:
    """Take a state apart: tensors (for safetensors) and a JSON-able mapping."""
    tensors = {name: tensor.contiguous() for name, tensor in state.tensors.items()}
    return tensors, {"settings": dump_settings(state.settings), "numbers": state.numbers}


def from_parts(name: str, tensors: Mapping[str, Tensor], mapping: Mapping[str, Any]) -> State:
    """Put together the state that `to_parts` took apart; `name` is the fuser's."""
    return State(settings_of(name, mapping["settings"]), dict(tensors), dict(mapping["numbers"]))


def _label_free(apply: Any, **more: Any) -> Fuser:
    return Fuser(fit_nothing, apply, needs_labels=False, **more)


def _on_embeddings(fit: Any, apply: Any, settings: Any, **more: Any) -> Fuser:
    return Fuser(fit, apply, settings, needs_embeddings=True, **more)


def _control(fit: Any, apply: Any, settings: Any, **more: Any) -> Fuser:
    return _on_embeddings(fit, apply, settings, kind="control", **more)


def _gate(about: str, **settings: Any) -> Fuser:
    more = {"path": nlc.path, "flops": flops.network, "weights": nlc.weight_shares, "about": about}
    return _on_embeddings(nlc.fit, nlc.apply, nlc.Gate(**settings), **more)


FUSERS: dict[str, Fuser] = {
    "mean_logits": _label_free(
        averages.mean_logits,
        flops=flops.logits_only,
        about="The mean of the backbones' logits.",
    ),
    "log_avg": _label_free(
        averages.log_avg,
        flops=flops.logits_only,
        about="The mean of the backbones' log-probabilities: a product of experts.",
    ),
    "prob_avg": _label_free(
        averages.prob_avg,
        flops=flops.logits_only,
        about="The mean of the backbones' probabilities: a mixture of experts.",
    ),
    "vote_top1": _label_free(
        averages.vote,
        settings=averages.Vote(1),
        flops=flops.logits_only,
        about="Each backbone votes for its best class.",
    ),
    "vote_top3": _label_free(
        averages.vote,
        settings=averages.Vote(3),
        flops=flops.logits_only,
        about="Each backbone votes for its three best classes.",
    ),
    "conf": _label_free(
        averages.conf,
        flops=flops.logits_only,
        about="For each image the backbone that is surest of its answer.",
    ),
    "conf_weighted": _label_free(
        averages.conf_weighted,
        flops=flops.logits_only,
        weights=averages.weights_by_confidence,
        about="The mean of the backbones' probabilities, surer backbones weighing more, image by image.",
    ),
    "best_single_on_support": Fuser(
        singles.fit_best_single,
        singles.best_single,
        kind="reference",
        flops=flops.logits_only,
        about="The one backbone that is best on the support set.",
    ),
    "c_log_avg": Fuser(
        averages.fit_calibrated,
        averages.c_log_avg,
        averages.Calibrated(),
        flops=flops.logits_only,
        about="`log_avg` of backbones whose temperatures are fitted on the support set.",
    ),
    "c_prob_avg": Fuser(
        averages.fit_calibrated,
        averages.c_prob_avg,
        averages.Calibrated(),
        flops=flops.logits_only,
        about="`prob_avg` of backbones whose temperatures are fitted on the support set.",
    ),
    "c_conf": Fuser(
        averages.fit_calibrated,
        averages.c_conf,
        averages.Calibrated(),
        flops=flops.logits_only,
        about="`conf` of backbones whose temperatures are fitted on the support set.",
    ),
    "weighted": Fuser(
        convex.fit_convex,
        convex.convex,
        convex.Convex("log"),
        flops=flops.logits_only,
        about="A weighted mean of log-probabilities, its convex weights fitted on the support set.",
    ),
    "super_learner": Fuser(
        convex.fit_convex,
        convex.convex,
        convex.Convex("prob"),
        flops=flops.logits_only,
        about="A weighted mean of probabilities, its convex weights fitted on the support set.",
    ),
    "greedy": Fuser(
        convex.fit_greedy,
        convex.convex,
        convex.Greedy(),
        flops=flops.logits_only,
        about="A mean of backbones that are added one by one as the support set gains by them.",
    ),
    "gac": Fuser(
        stacking.fit_genetic,
        stacking.weighted_logits,
        stacking.Genetic(),
        flops=flops.logits_only,
        about="A weighted mean of logits, its weights searched by a genetic algorithm on the support set.",
    ),
    "stacking": Fuser(
        stacking.fit_stacking,
        stacking.stacking,
        stacking.Stacking(),
        flops=flops.stacked,
        about="A logistic regression on all backbones' log-probabilities.",
    ),
    "nlc": _gate(
        "A small network on the embeddings that weighs the backbones' logits for each image.",
    ),
    "moe": _gate(
        "A linear gate on the embeddings that mixes the backbones' probabilities for each image.",
        hidden=0,
        rate=1e-2,
        weight_decay=0.0,
        weight_map="softmax",
        combine="probs",
    ),
    "swig": _gate(
        "A small network on the embeddings that mixes the backbones' probabilities for each image.",
        hidden=80,
        rate=1e-3,
        weight_decay=0.0,
        weight_map="softmax",
        combine="probs",
    ),
    "knora_e": _on_embeddings(
        dynamic_selection.fit_neighbours,
        dynamic_selection.neighbours,
        dynamic_selection.Neighbours("knora_e"),
        flops=flops.support_keys,
        weights=dynamic_selection.weights_by_neighbours,
        about="The backbones that are right on all of the nearest support images.",
    ),
    "knora_u": _on_embeddings(
        dynamic_selection.fit_neighbours,
        dynamic_selection.neighbours,
        dynamic_selection.Neighbours("knora_u"),
        flops=flops.support_keys,
        weights=dynamic_selection.weights_by_neighbours,
        about="The backbones weighed by how many of the nearest support images they have right.",
    ),
    "ola": _on_embeddings(
        dynamic_selection.fit_neighbours,
        dynamic_selection.neighbours,
        dynamic_selection.Neighbours("ola"),
        flops=flops.support_keys,
        weights=dynamic_selection.weights_by_neighbours,
        about="The backbone that is best on the nearest support images.",
    ),
    "meta_des": _on_embeddings(
        dynamic_selection.fit_meta_des,
        dynamic_selection.meta_des,
        dynamic_selection.MetaDes(),
        flops=flops.meta_classifier,
        weights=dynamic_selection.weights_by_competence,
        about="The backbones that a classifier of meta-features expects to be right on the image.",
    ),
    "ot": _label_free(
        ot.apply,
        settings=ot.Transport(),
        needs_embeddings=True,
        transductive=True,
        flops=flops.transport,
        about="Pseudo-labels for all images together by optimal transport between images and classes.",
    ),
    "ncm_concat": _control(
        prototypes.fit_ncm_concat,
        prototypes.ncm_concat,
        prototypes.Prototypes(centre=False),
        flops=flops.class_vectors,
        about="The nearest class mean in all backbones' embeddings side by side.",
    ),
    "proto_avg": _control(
        prototypes.fit_proto_avg,
        prototypes.proto_avg,
        prototypes.Prototypes(centre=True),
        flops=flops.class_vectors,
        about="The nearest class mean, its cosine averaged over the backbones' spaces.",
    ),
    "tip_adapter_avg": _control(
        prototypes.fit_tip,
        prototypes.tip_avg,
        prototypes.Tip(),
        flops=flops.support_keys,
        about="A cache of support images added to each backbone's logits, then averaged.",
    ),
    "linear_probe_concat": _control(
        prototypes.fit_probe_concat,
        prototypes.probe_concat,
        prototypes.Probe(),
        flops=flops.class_vectors,
        about="A linear probe on all backbones' embeddings side by side.",
    ),
    "nlc_prior": _on_embeddings(
        nlc_prior.fit,
        nlc_prior.apply,
        nlc_prior.PriorGate(),
        flops=flops.linear_gate,
        about="A gate that leaves the calibrated average only as far as the support set pays for it.",
    ),
    "nlc_meta": _on_embeddings(
        nlc_meta.fit,
        nlc_meta.apply,
        nlc_meta.MetaGate(),
        flops=nlc_meta.flops,
        about="One gate for experts of text and of prototypes, learned on other data sets.",
    ),
    "anchored": _on_embeddings(
        anchored.fit,
        anchored.apply,
        anchored.Anchored(),
        flops=flops.class_vectors,
        about="A linear probe on all embeddings that starts from what text says of the image.",
    ),
    "proto_fusion": _on_embeddings(
        proto_fusion.fit,
        proto_fusion.apply,
        proto_fusion.ProtoFusion(),
        flops=flops.text_and_prototypes,
        about="What text says of an image and what class means say of it, each weighed by its evidence.",
    ),
}
_MIXTURE = BySums(partial(transductive.start, FUSERS), partial(transductive.adapt, FUSERS))
FUSERS["transductive"] = _on_embeddings(
    partial(transductive.fit, FUSERS),
    partial(transductive.apply, FUSERS),
    transductive.Transductive(),
    without_labels=True,
    adapt=partial(transductive.adapt_at_hand, _MIXTURE),
    by_sums=_MIXTURE,
    flops=flops.mixture,
    about="A mixture of classes over all embeddings that unlabelled images teach, started from `log_avg`.",
)


def _guarded(about: str, **settings: Any) -> Fuser:
    by_sums = BySums(guarded.start, partial(guarded.adapt, FUSERS))
    return _on_embeddings(
        partial(guarded.fit, FUSERS),
        partial(guarded.apply, FUSERS),
        guarded.Guarded(**settings),
        without_labels=True,
        adapt=partial(transductive.adapt_at_hand, by_sums),
        by_sums=by_sums,
        flops=partial(guarded.flops, FUSERS),
        about=about,
    )


FUSERS["guarded"] = _guarded(
    "A mixture of other fusers by what they do on held-out support images, taught by the images to be classified.",
)
FUSERS["guarded_pool"] = _guarded(
    "`guarded`, taught by unlabelled images of the train split: it classifies one image at a time.",
    unlabelled="train",
)
FUSERS["guarded_single"] = _guarded(
    "`guarded` without unlabelled images: it classifies one image at a time.",
    unlabelled="none",
)
FUSERS.update({name: exact_fuser(fuser) for name, fuser in FUSERS.items()})
