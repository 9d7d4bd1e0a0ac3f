"""Classes that nothing tells apart get equal outputs, to the last bit, on any CPU.

Two class names may be the same text to a text tower. Their logits are then equal, and so must be whatever is computed
from them. But a vectorised sum or product rounds a column by its position (the last columns are summed in another
order), so each fuser and head would break such ties in its own way, on each kind of CPU in another one. Writing every
sum so that it rounds the same everywhere was rejected: it binds every fuser to come. Instead the registries of fusers
and heads pass through `exact_fuser` and `exact_head`, which level what must be equal.

Classes are told apart by the logits, and by what a fitted state holds of each class: support images of their own
make classes of one name different. A state's tensor holds something of each class where its name ends in a shape with
a C (`w_DC`, `means_CD/0`), or it is `labels_K`.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipray.numerics.blocks import Lazy, blocks, by_block, spans, wide
from clipray.numerics.contracts import Fuser, Head, State, Support, unit

_SHORT = 256  # bytes of a column up to which it is its own key; a digest of a longer one takes less memory


def exact_fuser(fuser: Fuser) -> Fuser:
    """The same fuser, with equal outputs for classes that it cannot tell apart, applied block by block."""
    apply = partial(_apply_fuser, fuser.apply, fuser.transductive)
    adapt = fuser.adapt and partial(_adapt_fuser, fuser.adapt)
    return fuser._replace(fit=partial(_fit_fuser, fuser.fit), apply=apply, adapt=adapt)


def exact_head(head: Head) -> Head:
    """Return the same head, with equal logits for classes that it cannot tell apart."""
    return head._replace(fit=partial(_fit_head, head.fit), apply=partial(_apply_head, head.apply))


def _fit_fuser(fit: Any, supports: Sequence[Support], settings: Any) -> list[State]:
    states = fit(supports, settings)
    return [
        _with_level_state(state, support.logits_KMC.flatten(0, 1), support.labels_K)
        for state, support in zip(states, supports, strict=True)
    ]


def _fit_head(fit: Any, problems: Sequence[Any], settings: Any) -> list[State]:
    states = fit(problems, settings)
    return [
        state
        if problem is None
        else _with_level_state(state, unit(problem.classifier_CD).T, problem.labels_K)
        for state, problem in zip(states, problems, strict=True)
    ]


def _with_level_state(state: State, known_XC: Tensor, labels_K: Tensor) -> State:
    """Return a state that holds the same of all classes without support image that nothing else tells apart."""
    classes = known_XC.shape[1]
    own = {
        name: axis
        for name, t in state.tensors.items()
        if (axis := class_axis(name, t, classes)) is not None
    }
    if not own or not len(labels_K):
        return state
    seen_C = torch.bincount(labels_K, minlength=classes) > 0
    kind_C = torch.where(seen_C, torch.arange(classes) + 1, 0)
    first_C = _alike_too(first_alike(kind_C[None]), known_XC)
    if torch.equal(first_C, torch.arange(classes)):
        return state
    level = {name: state.tensors[name].index_select(axis, first_C) for name, axis in own.items()}
    return dataclasses.replace(state, tensors=state.tensors | level)


def _adapt_fuser(
    adapt: Any, state: State, logits_NMC: Tensor | Lazy, embeddings: Sequence[Tensor]
) -> State:
    """What unlabelled images teach of classes that neither they nor the state tell apart is the same."""
    taught = adapt(state, logits_NMC, embeddings)  # widens and looks in blocks by itself
    if taught is state or not len(logits_NMC):
        return taught
    classes = logits_NMC.shape[2]
    return level_state(taught, _equal_in_all(logits_NMC, kinds(state.tensors, classes)))


def level_state(state: State, first_C: Tensor) -> State:
    """A state that holds of each class what it holds of another one, the first that is the same in all that counts."""
    classes = len(first_C)
    if torch.equal(first_C, torch.arange(classes)):
        return state
    level = {
        name: t.index_select(axis, first_C)
        for name, t in state.tensors.items()
        if (axis := class_axis(name, t, classes)) is not None
    }
    return dataclasses.replace(state, tensors=state.tensors | level)


def _apply_fuser(
    apply: Any,
    transductive: bool,
    state: State,
    logits_NMC: Tensor | Lazy,
    embeddings: Sequence[Tensor] = (),
) -> Tensor:
    known = cache(lambda: kinds(state.tensors, logits_NMC.shape[2]))  # once for all blocks

    def one(block_BMC: Tensor, own: Sequence[Tensor]) -> Tensor:
        log_probs_BC = apply(state, block_BMC, own)
        return _level(log_probs_BC, block_BMC, known, per_image=not transductive)

    if transductive:  # an image's result depends on the others
        return one(logits_NMC[:], wide(embeddings))
    return by_block(one, logits_NMC, embeddings)


def _apply_head(
    apply: Any, state: State, embeddings_ND: Tensor, classifier_CD: Tensor, *scale: float
) -> Tensor:
    logits_NC = apply(state, embeddings_ND, classifier_CD, *scale)
    first_C = first_alike(unit(classifier_CD).T)
    if torch.equal(first_C, torch.arange(len(first_C))):
        return logits_NC
    kind_C = kinds(state.tensors, len(first_C))
    return logits_NC[:, first_alike(torch.stack([first_C, kind_C]))]


def level(
    values_NC: Tensor,
    logits_NMC: Tensor,
    tensors: Mapping[str, Tensor] | None = None,
    per_image: bool = True,
) -> Tensor:
    """Make values equal for classes of equal logits: each gets the highest of them.

    Args:
        values_NC: what a fuser made of the logits.
        tensors: what the fuser knows of each class beside, see the module's text.
        per_image: whether equal logits in one image are enough; else they must be equal in all.

    >>> z = torch.tensor([[[1.0, 0.0, 1.0]]])
    >>> level(torch.tensor([[0.25, 0.5, 0.26]]), z)
    tensor([[0.2600, 0.5000, 0.2600]])
    """
    return _level(
        values_NC, logits_NMC, lambda: kinds(tensors or {}, values_NC.shape[1]), per_image
    )


def _level(
    values_NC: Tensor, logits_NMC: Tensor, known: Callable[[], Tensor], per_image: bool
) -> Tensor:
    """`level`, where `known` gives what the fuser knows of each class, as `kinds` does."""
    images, _, classes = logits_NMC.shape
    # names that are one text are tied in the first image already
    first_and_others = slice(1), slice(1, None)
    if not any(bool(_has_ties(logits_NMC[rows, 0]).any()) for rows in first_and_others):
        return values_NC  # one backbone that tells all classes apart is enough
    kind_C = known()
    if _distinct(kind_C):  # what a fuser has learned of each class tells all apart
        return values_NC
    first_C = _equal_in_all(logits_NMC, kind_C)
    number_NC = first_C.expand(images, classes)
    left_N = _has_ties(logits_NMC[:, 0, first_C.unique()])
    if per_image and bool(left_N.any()):
        number_NC = number_NC.clone()
        number_NC[left_N] = _equal_in_each(logits_NMC[left_N], kind_C)
    highest_NC = torch.full_like(values_NC, -torch.inf)
    highest_NC = highest_NC.scatter_reduce(1, number_NC, values_NC, "amax")
    return highest_NC.gather(1, number_NC)


def kinds(tensors: Mapping[str, Tensor], classes: int) -> Tensor:
    """Number the classes, number_C, so that those of which a fitted state holds the same have equal numbers.

    >>> kinds({"w_DC": torch.tensor([[0.5, 0.5, 0.0]]), "labels_K": torch.tensor([1])}, 3)
    tensor([0, 1, 2])
    """
    number_C = torch.zeros(classes, dtype=torch.int64)
    for name, tensor in tensors.items():
        if name.rpartition("/")[2] == "labels_K":
            own_C = torch.zeros(classes, dtype=torch.int64)
            own_C[tensor.long()] = tensor.long() + 1
            number_C = first_alike(torch.stack([number_C, own_C]))
        elif (axis := class_axis(name, tensor, classes)) is not None:
            held_XC = tensor.movedim(axis, -1).reshape(-1, classes)
            number_C = _alike_too(first_alike(number_C[None]), held_XC)
    return number_C


def class_axis(name: str, tensor: Tensor, classes: int) -> int | None:
    """Return the axis of a state's tensor that stands for the classes, by its name; None where there is none.

    >>> class_axis("anchored/w_DC", torch.zeros(5, 3), 3), class_axis("keys_KD/0", torch.zeros(2, 5), 3)
    (1, None)
    """
    for part in reversed(name.split("/")):
        shape = part.rpartition("_")[2]
        if "_" in part and "C" in shape and shape.isupper() and len(shape) == tensor.ndim:
            axis = shape.index("C")
            return axis if tensor.shape[axis] == classes else None
    return None


def first_alike(columns_XC: Tensor) -> Tensor:
    """Find for each column the position of the first that is equal to it.

    >>> first_alike(torch.tensor([[2.0, 1.0, 2.0], [0.0, 0.0, 0.0]]))
    tensor([0, 1, 0])
    """
    if len(columns_XC) and _distinct(columns_XC[0]):
        return torch.arange(columns_XC.shape[1])
    rows_CX = (columns_XC + 0).T.contiguous().numpy(force=True)  # + 0: −0 is 0
    first: dict[bytes, int] = {}
    if rows_CX[:1].nbytes <= _SHORT:
        keys = (row_X.tobytes() for row_X in rows_CX)
    else:
        keys = (hashlib.blake2b(row_X, digest_size=16).digest() for row_X in rows_CX)
    return torch.tensor([first.setdefault(key, c) for c, key in enumerate(keys)])


def _distinct(values_C: Tensor) -> bool:
    """Tell whether all are numbers and no two are equal, so that nothing else has to be looked at."""
    sorted_C = np.sort(values_C.numpy(force=True))
    numbers = sorted_C.dtype.kind != "f" or not np.isnan(sorted_C[-1:]).any()  # nan comes last
    return bool(numbers and (sorted_C[1:] != sorted_C[:-1]).all())


def _alike_too(first_C: Tensor, columns_XC: Tensor) -> Tensor:
    """For each column the first that is alike by `first_C`, and equal here too; looks no further than it has to."""
    for rows in blocks(columns_XC):
        if torch.equal(first_C, torch.arange(len(first_C))):
            break
        first_C = first_alike(torch.stack([first_C, first_alike(columns_XC[rows])]))
    return first_C


def _has_ties(logits_NC: Tensor) -> Tensor:
    """Tell which rows hold a number twice; NumPy sorts several times as fast as PyTorch does on a CPU."""
    if logits_NC.device.type != "cpu":
        sorted_NC = logits_NC.sort(dim=1).values
        return (sorted_NC[:, 1:] == sorted_NC[:, :-1]).any(dim=1)
    sorted_NC = np.sort(logits_NC.detach().numpy(force=True), axis=1)
    return torch.from_numpy((sorted_NC[:, 1:] == sorted_NC[:, :-1]).any(axis=1))


def _equal_in_all(logits_NMC: Tensor | Lazy, kind_C: Tensor) -> Tensor:
    """For each class the first that has its kind, and its logits in all images."""
    own_C = torch.arange(len(kind_C))
    first_C = first_alike(torch.cat([logits_NMC[:1][0].double(), kind_C[None].double()]))
    (moved,) = torch.nonzero(first_C != own_C, as_tuple=True)
    same = torch.ones(len(moved), dtype=torch.bool)
    for rows in spans(logits_NMC) if len(moved) else ():
        z_BMC = logits_NMC[rows]
        same &= (z_BMC[..., moved] == z_BMC[..., first_C[moved]]).all(1).all(0)
    return own_C.index_copy(0, moved, torch.where(same, first_C[moved], moved))


def _equal_in_each(logits_RMC: Tensor, kind_C: Tensor) -> Tensor:
    """For each image and class the first class of its kind that has the same logits there, R×C.

    Only the few classes that the first backbone ties are compared further.
    """
    images, _, classes = logits_RMC.shape
    sorted_RC, order_RC = logits_RMC[:, 0].sort(dim=1)
    same_RC = sorted_RC[:, 1:] == sorted_RC[:, :-1]
    tied_RC = torch.zeros(images, classes, dtype=torch.int32)
    tied_RC[:, 1:] |= same_RC
    tied_RC[:, :-1] |= same_RC
    most = int(tied_RC.sum(1).max())
    some_RT = order_RC.gather(1, tied_RC.topk(most, dim=1).indices)  # those without a tie fill up
    number_RT = kind_C[some_RT]
    for logits_RC in logits_RMC.unbind(1):
        number_RT = _ranks(number_RT * classes + _ranks(logits_RC.gather(1, some_RT)))
    first_RT = torch.full_like(some_RT, classes).scatter_reduce(1, number_RT, some_RT, "amin")
    own_RC = torch.arange(classes).repeat(images, 1)
    return own_RC.scatter(1, some_RT, first_RT.gather(1, number_RT))


def _ranks(values_RC: Tensor) -> Tensor:
    """Positions of each row's values among its distinct ones, int64."""
    sorted_RC, order_RC = values_RC.sort(dim=1)
    step_RC = torch.zeros_like(order_RC)
    step_RC[:, 1:] = sorted_RC[:, 1:] != sorted_RC[:, :-1]
    return torch.zeros_like(order_RC).scatter(1, order_RC, step_RC.cumsum(1))
