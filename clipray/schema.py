"""One pyarrow schema per artefact."""

import pyarrow as pa

INDEX = pa.schema(
    [
        (
            "image_id",
            pa.string(),
        ),  # 32 hex digits of the bytes' hash; ".1", ".2" … on repeats of equal images
        ("chunk", pa.int32()),  # position of the chunk in the listing
        ("row", pa.int32()),  # position of the sample in its chunk
        ("key", pa.string()),  # where a person finds the image: a path, a tar member, a row number
        ("offset", pa.int64()),  # where its bytes start in the file, for tars; null elsewhere
        ("size", pa.int64()),  # bytes
        ("label", pa.int64()),  # null where the source gives none
        ("error", pa.string()),  # null, or why the sample could not be read
    ]
)

KINDS = ("single", "bound", "reference", "alone", "control", "fuser", "measure")

SCORES = pa.schema(
    [
        ("dataset", pa.string()),
        ("split", pa.string()),
        ("perturbation", pa.string()),  # "none" for clean images
        ("severity", pa.int32()),  # 0 for clean images
        ("head", pa.string()),
        (
            "method",
            pa.string(),
        ),  # as in METHODS: single/<backbone>, oracle, log_avg, …; pair/<a>/<b>; set
        # of KINDS. A bound sees test labels; the reference is what fusers are compared with; alone/<fuser> is that
        # fuser on one backbone, chosen with the same labels; a control is a few-shot
        # classifier on all embeddings; a measure is of backbones, pairs, their spaces or support sets, and no method
        ("kind", pa.string()),
        ("shots", pa.int32()),  # labelled images per class; 0 for label-free methods
        ("seed", pa.int32()),  # support set; 0 for label-free methods
        ("metric", pa.string()),  # top1, oracle_gain, complementarity, …
        ("value", pa.float64()),
        ("ci_low", pa.float64()),
        ("ci_high", pa.float64()),
        ("n_scored", pa.int64()),
        ("n_expected", pa.int64()),
    ]
)

SUPPORT_SETS = pa.schema(  # the labelled images that fusers may see: one row per image of a set
    [
        ("dataset", pa.string()),
        ("shots", pa.int32()),
        ("seed", pa.int32()),
        ("image_id", pa.string()),
        ("label", pa.int64()),
    ]
)

OUTCOMES = pa.schema(
    [
        ("dataset", pa.string()),
        ("head", pa.string()),
        ("method", pa.string()),
        ("shots", pa.int32()),
        ("seed", pa.int32()),
        ("image_id", pa.string()),
        ("label", pa.int32()),
        ("prediction", pa.int32()),
        ("confidence", pa.float32()),  # the fused probability of the prediction
    ]
)

PREDICTIONS = pa.schema(  # what a fused model says of images: one row each
    [
        ("image_id", pa.string()),  # as in the index
        ("path", pa.string()),  # where a person finds it, as the index's `key`
        ("label", pa.string()),  # the name of its class; null with an error
        ("class", pa.int32()),  # its number
        ("probability", pa.float32()),  # the fused probability of it
        ("top5", pa.list_(pa.struct([("label", pa.string()), ("probability", pa.float32())]))),
        ("backbones_used", pa.list_(pa.string())),
        ("gflops", pa.float64()),  # of this image
        ("target", pa.int32()),  # the known class, where there is one
        ("error", pa.string()),  # null, or why there is no label
    ]
)

STANDINGS = pa.schema(  # methods over all datasets: one row per head, shots and method
    [
        ("head", pa.string()),
        ("shots", pa.int32()),
        ("method", pa.string()),
        ("datasets", pa.int32()),  # that have a score of every method ranked here
        ("mean_rank", pa.float64()),  # 1: the best; among `methods`
        ("methods", pa.int32()),
        ("friedman_p", pa.float64()),  # of "all these methods are alike"
        ("critical_difference", pa.float64()),  # Nemenyi's, of mean ranks, at 5 %
        (
            "correlation",
            pa.float64(),
        ),  # Pearson's, over datasets: gain_on_support with complementarity
        ("correlation_low", pa.float64()),
        ("correlation_high", pa.float64()),
        ("synergy", pa.float64()),  # mean over datasets of fused − the same on one backbone
        ("synergy_low", pa.float64()),  # 95 %: over datasets, support sets and images
        ("synergy_high", pa.float64()),
    ]
)

FITS = pa.schema(  # of a search: one row per configuration, support set and moment of training
    [
        ("key", pa.string()),  # fingerprint of all that made the row
        ("configuration", pa.string()),  # JSON: head, its settings, fuser, its settings
        ("dataset", pa.string()),
        ("shots", pa.int32()),
        ("seed", pa.int32()),
        ("progress", pa.float64()),  # of the training; 1: its end
        ("nll", pa.float64()),  # nats, on images of the train split that the fit has not seen
        ("top1", pa.float64()),
        ("images", pa.int32()),  # that were scored
        ("fits", pa.int32()),  # one for each fold
        ("seconds", pa.float64()),
        ("error", pa.string()),  # null, or why there is no score
    ]
)

TRIALS = pa.schema(  # of a search with a scheduler: what a study has let train how far
    [
        ("study", pa.string()),
        ("configuration", pa.string()),  # JSON, as in FITS
        (
            "reached",
            pa.float64(),
        ),  # progress at which the scheduler stopped it; 1: not stopped; 0: it failed
    ]
)

CHOICES = pa.schema(  # what a search chose: one row per scope
    [
        ("search", pa.string()),
        ("dataset", pa.string()),  # that it is chosen for; null: all
        ("shots", pa.int32()),  # null: all
        ("seed", pa.int32()),  # null: all
        ("settings", pa.string()),  # JSON, as a campaign's fuser takes them
        ("head_settings", pa.string()),
        ("chosen_by", pa.float64()),  # its score on the support sets that it was chosen on
        ("default_by", pa.float64()),  # that of the defaults
        (
            "nll",
            pa.float64(),
        ),  # mean on the dataset's own rows, which did not choose it (leave_one_dataset_out only)
        ("default_nll", pa.float64()),
        ("top1", pa.float64()),
        ("default_top1", pa.float64()),
        ("configurations", pa.int32()),  # it was chosen from
        ("support_sets", pa.int32()),  # it was chosen on
    ]
)

FAILURES = (
    pa.schema(  # of an image; or, without an image, of all that the row names: it is left out
        [
            ("dataset", pa.string()),  # null: everywhere
            ("split", pa.string()),
            ("backbone", pa.string()),  # null: whichever it is
            ("step", pa.string()),  # load | read | text | embed | teach | evaluate
            ("image_id", pa.string()),
            ("key", pa.string()),
            ("error", pa.string()),
        ]
    )
)


def embeddings(dim: int, precision: str) -> pa.Schema:
    """The schema of one (shard, backbone) file.

    An image with an error has D nulls for an embedding, not one null list: Arrow cannot read null lists of fixed size
    back from Parquet, and flattening such a column would move every row behind it.

    Args:
        dim: D, the backbone's embedding dimension.
        precision: "fp32" stores float32; "fp16" and "bf16" store float16.
    """
    value = pa.float32() if precision == "fp32" else pa.float16()
    return pa.schema(
        [
            ("image_id", pa.string()),
            ("label", pa.int64()),
            ("embedding", pa.list_(value, dim)),  # as the model gives it, not normalised
            ("error", pa.string()),
        ]
    )
