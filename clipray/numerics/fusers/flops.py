"""What fusers add to their backbones: floating-point operations per image, by the shapes of what they have fitted.

Each function is the `flops` of entries of the registry: (state, backbones, classes, dims) -> operations per image;
`dims` are the embeddings' dimensions. A matrix that an image's vector meets costs two operations per entry, a
multiplication and an addition. Weighing the M×C logits costs two per logit, whatever is done with them. Softmaxes and
other steps entry by entry are not counted, as profilers do not count them either.
"""

from collections.abc import Sequence

from clipray.numerics.contracts import State

MULTIPLY_ADD = 2  # floating-point operations


def logits_only(state: State, backbones: int, classes: int, dims: Sequence[int]) -> float:
    """Of a fuser that weighs the backbones' logits and reads no embedding.

    >>> logits_only(State(None), backbones=3, classes=4, dims=(5, 6, 7))
    24.0
    """
    return float(MULTIPLY_ADD * backbones * classes)


def class_vectors(state: State, backbones: int, classes: int, dims: Sequence[int]) -> float:
    """Of one that compares embeddings with a vector for each class: class means, and probes with their intercept."""
    vectors = MULTIPLY_ADD * classes * (sum(dims) + 1)
    return vectors + logits_only(state, backbones, classes, dims)


def mixture(state: State, backbones: int, classes: int, dims: Sequence[int]) -> float:
    """Of `transductive`: the class means that unlabelled images have taught it, if they have, beside its start."""
    taught = "means_CD" in state.tensors
    return (class_vectors if taught else logits_only)(state, backbones, classes, dims)


def text_and_prototypes(state: State, backbones: int, classes: int, dims: Sequence[int]) -> float:
    """Of `proto_fusion`: class means in every space, and two kinds of logits that are weighed."""
    return class_vectors(state, backbones, classes, dims) + MULTIPLY_ADD * 2 * classes


def support_keys(state: State, backbones: int, classes: int, dims: Sequence[int]) -> float:
    """Of one that compares embeddings with those of every support image."""
    images = len(state.tensors["keys_KD/0"])
    return MULTIPLY_ADD * images * sum(dims) + logits_only(state, backbones, classes, dims)


def stacked(state: State, backbones: int, classes: int, dims: Sequence[int]) -> float:
    """Of `stacking`: a matrix from all M·C log-probabilities, and a constant, to the classes."""
    matrix = MULTIPLY_ADD * (backbones * classes + 1) * classes
    return matrix + logits_only(state, backbones, classes, dims)


def network(state: State, backbones: int, classes: int, dims: Sequence[int]) -> float:
    """Of a gate: its layers, by the settings."""
    hidden, width = state.settings.hidden, sum(dims)
    layers = hidden * (width + backbones) if hidden else width * backbones
    return MULTIPLY_ADD * layers + logits_only(state, backbones, classes, dims)


def linear_gate(state: State, backbones: int, classes: int, dims: Sequence[int]) -> float:
    """Of `nlc_prior`: one vector for each backbone on all embeddings."""
    return MULTIPLY_ADD * sum(dims) * backbones + logits_only(state, backbones, classes, dims)


def meta_classifier(state: State, backbones: int, classes: int, dims: Sequence[int]) -> float:
    """Of `meta_des`: support keys, the support images' profiles of M·C probabilities, and a small classifier."""
    images = len(state.tensors["right_KM"])
    profiles = MULTIPLY_ADD * images * backbones * classes
    classifier = MULTIPLY_ADD * backbones * state.tensors["w_F2"].numel()
    return profiles + classifier + support_keys(state, backbones, classes, dims)


def transport(state: State, backbones: int, classes: int, dims: Sequence[int]) -> float:
    """Of `ot`, per image of a large call: each round makes class means of all images and compares them with all."""
    settings = state.settings
    rounds = settings.rounds * 2 * MULTIPLY_ADD * classes * sum(dims)
    scaling = (settings.rounds + 1) * settings.iterations * MULTIPLY_ADD * classes
    return rounds + scaling + logits_only(state, backbones, classes, dims)
