"""Label a collection of images with a fused model; no label of theirs is needed.

    python -m jobs.predict configs/predict.yaml                      offline, after jobs.fit configs/fit.yaml
    python -m jobs.predict configs/predict.yaml --set images=PATH    a folder of images, a .txt of paths, a Parquet file
    python -m jobs.predict configs/predict.yaml --set model=workspace/fused/models/NAME    a folder, s3://…
    python -m jobs.predict configs/predict.yaml --set keep_embeddings=true
    ray job submit --working-dir . -- python -m jobs.predict my.yaml --set workspace=s3://bucket/ws

Parquet files of image_id, path, label, class, probability, top5, backbones_used, gflops, target and error lie in the
workspace; an image that cannot be read is a row with its error. A model whose fuser learns from the images to be
labelled (`transductive`, `guarded`) learns from the whole collection first, and is kept; `learn: false` takes it as it
was fitted. The same command again continues a run that was
stopped. The last line on stdout is one JSON object: predictions, model, images, labelled, failed, gflops_per_image, and
accuracy where labels are known.
"""

from clipray import config
from clipray.config.predict import Predict
from jobs import DRY, arguments, finish, run, say

CONFIG = "a prediction's YAML file, such as configs/predict.yaml"


def main() -> int:
    """Plan, label what is missing, count."""
    given = arguments(__doc__, config=CONFIG, dry_run=DRY)
    say(f"reading {given.config}")
    wanted = config.load(Predict, given.config, given.set)
    from clipray.steps import labelling
    from clipray.steps.cluster import check_lasting

    check_lasting(workspace=wanted.workspace)
    job = labelling.prepare(wanted)
    work = job.work
    say(
        "\n".join(f"note: {text}" for text in work.remarks) or f"model   {job.folder.about['name']}"
    )
    say(f"{len(work.index)} images, {work.images} to label")
    if given.dry_run:
        finish({"images": len(work.index), "images_to_label": work.images, "model": job.model})
        return 0
    result = labelling.label(job, given.verbose)
    if "accuracy" in result:
        say(f"accuracy {result['accuracy']:.4f} of {result['scored']} images whose class is known")
    say(f"labels  {result['predictions']}")
    finish(result)
    return 0


if __name__ == "__main__":
    run(main)
