"""Measures of the embedding spaces themselves, which need no head."""

from collections.abc import Sequence
from itertools import combinations

from clipray.numerics.blocks import wide
from clipray.numerics.heads import zero_shot
from clipray.numerics.heads.cross_fit import View
from clipray.numerics.measures import similarity
from clipray.steps.evaluate.rows import Place, Scores

SPACES = "embeddings"  # stands for a head in the rows of measures that need none
SAMPLE, NEIGHBOURS = 2048, 10


def score_spaces(scores: Scores, test: Sequence[View]) -> None:
    """Measure how alike the backbones' embedding spaces are, pair by pair: linear CKA and mutual k-NN overlap.

    On the first images by id, which is a hash, so they are a random sample: neighbours cost N². And of each backbone
    the share of class names that its text tower cannot tell from another one.
    """
    for view in test:
        share = float(zero_shot.alike(view.classifier_CD).float().mean())
        place = Place(SPACES, f"single/{view.name}", 0, 0)
        scores.plain(place, "measure", {"alike_names": share})
    for one, other in combinations(test, 2):
        a_ND, b_ND = wide([one.embeddings_ND[:SAMPLE], other.embeddings_ND[:SAMPLE]])
        values = {"cka": similarity.cka(a_ND, b_ND)}
        if len(a_ND) > NEIGHBOURS:
            values["mutual_knn"] = similarity.neighbour_overlap(a_ND, b_ND, NEIGHBOURS)
        for pair in (f"pair/{one.name}/{other.name}", f"pair/{other.name}/{one.name}"):
            scores.plain(Place(SPACES, pair, 0, 0), "measure", values)
