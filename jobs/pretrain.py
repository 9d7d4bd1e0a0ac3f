"""Train a small CLIP backbone on captioned images, with Ray Train.

    python -m jobs.pretrain configs/pretrain/vit-p8-40.yaml --set corpus=PATH_OR_URI_OF_PARQUET
    python -m jobs.pretrain my.yaml --set workers=2 --set threads=1          two CPU workers (DDP)
    python -m jobs.pretrain my.yaml --set workers=4 --set use_gpu=true       four GPUs

The corpus is Parquet with a column of encoded images and one of captions. The same command again continues after the
last epoch that was finished; a worker that dies is replaced and does the same. The weights go to `output` as fp16
safetensors, the epochs' loss, throughput and held-out accuracy to MLflow. The last line on stdout is one JSON object.
"""

from clipray import config
from clipray.config.pretrain import Pretrain
from jobs import arguments, finish, run, say, tracked

CONFIG = "a training's YAML file, such as configs/pretrain/rn-32.yaml"


def main() -> int:
    """Train, export, record."""
    given = arguments(__doc__, config=CONFIG)
    say(f"reading {given.config}")
    training = config.load(Pretrain, given.config, given.set)
    from clipray.steps.cluster import check_lasting
    from clipray.steps.pretrain.train import pretrain

    check_lasting(workspace=training.workspace, output=training.output)
    result = pretrain(training, given.verbose)
    code = tracked(result)
    finish(result)
    return code


if __name__ == "__main__":
    run(main)
