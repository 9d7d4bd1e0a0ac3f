"""Every fuser by name, and how a fitted one is taken apart and put together again."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from clipray.numerics.contracts import Fuser, State, changed, dump_settings, fit_nothing
from clipray.numerics.fewshot import prototypes
from clipray.numerics.fusers import (
    anchored,
    averages,
    convex,
    dynamic_selection,
    guarded,
    nlc,
    nlc_meta,
    nlc_prior,
    ot,
    proto_fusion,
    singles,
    stacking,
)
from clipray.numerics.ties import exact_fuser


def settings_of(name: str, changes: Mapping[str, Any] | None = None) -> Any:
    """The settings of a fuser, the given ones changed.

    Raises:
        KeyError: no such fuser. TypeError: no such setting.

    >>> settings_of("vote_top3")
    Vote(best=3)
    """
    if name not in FUSERS:
        raise KeyError(f"no fuser {name!r}; known: {', '.join(FUSERS)}")
    return changed(FUSERS[name].settings, changes or {})


def to_parts(state: State) -> tuple[dict[str, Tensor], dict]:
    """A state as tensors (for safetensors) and a JSON-able mapping."""
    tensors = {name: tensor.contiguous() for name, tensor in state.tensors.items()}
    return tensors, {"settings": dump_settings(state.settings), "numbers": state.numbers}


def from_parts(name: str, tensors: Mapping[str, Tensor], mapping: Mapping[str, Any]) -> State:
    """The state that `to_parts` took apart; `name` is the fuser's."""
    return State(settings_of(name, mapping["settings"]), dict(tensors), dict(mapping["numbers"]))


def _label_free(apply: Any, **more: Any) -> Fuser:
    return Fuser(fit_nothing, apply, needs_labels=False, **more)


def _on_embeddings(fit: Any, apply: Any, settings: Any, **more: Any) -> Fuser:
    return Fuser(fit, apply, settings, needs_embeddings=True, **more)


def _control(fit: Any, apply: Any, settings: Any) -> Fuser:
    return _on_embeddings(fit, apply, settings, kind="control")


def _gate(**settings: Any) -> Fuser:
    return _on_embeddings(nlc.fit, nlc.apply, nlc.Gate(**settings), path=nlc.path)


FUSERS: dict[str, Fuser] = {
    "mean_logits": _label_free(averages.mean_logits),
    "log_avg": _label_free(averages.log_avg),
    "prob_avg": _label_free(averages.prob_avg),
    "vote_top1": _label_free(averages.vote, settings=averages.Vote(1)),
    "vote_top3": _label_free(averages.vote, settings=averages.Vote(3)),
    "conf": _label_free(averages.conf),
    "conf_weighted": _label_free(averages.conf_weighted),
    "best_single_on_support": Fuser(singles.fit_best_single, singles.best_single, kind="reference"),
    "c_log_avg": Fuser(averages.fit_calibrated, averages.c_log_avg, averages.Calibrated()),
    "c_prob_avg": Fuser(averages.fit_calibrated, averages.c_prob_avg, averages.Calibrated()),
    "c_conf": Fuser(averages.fit_calibrated, averages.c_conf, averages.Calibrated()),
    "weighted": Fuser(convex.fit_convex, convex.convex, convex.Convex("log")),
    "super_learner": Fuser(convex.fit_convex, convex.convex, convex.Convex("prob")),
    "greedy": Fuser(convex.fit_greedy, convex.convex, convex.Greedy()),
    "gac": Fuser(stacking.fit_genetic, stacking.weighted_logits, stacking.Genetic()),
    "stacking": Fuser(stacking.fit_stacking, stacking.stacking, stacking.Stacking()),
    "nlc": _gate(),
    "moe": _gate(hidden=0, rate=1e-2, weight_decay=0.0, weight_map="softmax", combine="probs"),
    "swig": _gate(hidden=80, rate=1e-3, weight_decay=0.0, weight_map="softmax", combine="probs"),
    "knora_e": _on_embeddings(
        dynamic_selection.fit_neighbours,
        dynamic_selection.neighbours,
        dynamic_selection.Neighbours("knora_e"),
    ),
    "knora_u": _on_embeddings(
        dynamic_selection.fit_neighbours,
        dynamic_selection.neighbours,
        dynamic_selection.Neighbours("knora_u"),
    ),
    "ola": _on_embeddings(
        dynamic_selection.fit_neighbours,
        dynamic_selection.neighbours,
        dynamic_selection.Neighbours("ola"),
    ),
    "meta_des": _on_embeddings(
        dynamic_selection.fit_meta_des, dynamic_selection.meta_des, dynamic_selection.MetaDes()
    ),
    "ot": _label_free(ot.apply, settings=ot.Transport(), needs_embeddings=True, transductive=True),
    "ncm_concat": _control(
        prototypes.fit_ncm_concat, prototypes.ncm_concat, prototypes.Prototypes(centre=False)
    ),
    "proto_avg": _control(
        prototypes.fit_proto_avg, prototypes.proto_avg, prototypes.Prototypes(centre=True)
    ),
    "tip_adapter_avg": _control(prototypes.fit_tip, prototypes.tip_avg, prototypes.Tip()),
    "linear_probe_concat": _control(
        prototypes.fit_probe_concat, prototypes.probe_concat, prototypes.Probe()
    ),
    "nlc_prior": _on_embeddings(nlc_prior.fit, nlc_prior.apply, nlc_prior.PriorGate()),
    "nlc_meta": _on_embeddings(nlc_meta.fit, nlc_meta.apply, nlc_meta.MetaGate()),
    "anchored": _on_embeddings(anchored.fit, anchored.apply, anchored.Anchored()),
    "proto_fusion": _on_embeddings(
        proto_fusion.fit, proto_fusion.apply, proto_fusion.ProtoFusion()
    ),
}
FUSERS["guarded"] = _on_embeddings(
    partial(guarded.fit, FUSERS), partial(guarded.apply, FUSERS), guarded.Guarded()
)
FUSERS.update({name: exact_fuser(fuser) for name, fuser in FUSERS.items()})
