"""Put a fused model behind HTTP, with Ray Serve: a deployment for each backbone, requests batched as they come.

    python -m jobs.serve workspace/fused/models/NAME                      the folder that jobs.fit told
    python -m jobs.serve s3://bucket/ws/models/NAME --host 0.0.0.0 --port 8000 --max-images 64
    python -m jobs.serve models:/NAME@champion --workspace workspace/fused
    curl --data-binary @a.png -H 'Content-Type: image/png' http://127.0.0.1:8000/predict
    curl http://127.0.0.1:8000/healthz

POST /predict takes an image as it is, or {"images": ["<base64>", …]}. The line on stdout, one JSON object with url and
model, is printed when it answers; it ends with ctrl-C or SIGTERM.
"""

import signal

from jobs import arguments, finish, run, say

MODEL = "a fused model: its folder, s3://…, or models:/NAME@ALIAS with --workspace"


def flag(default: int | str, words: str) -> dict:
    """Argparse's settings of a flag with a default."""
    kind = {"type": type(default), "default": default}
    return {**kind, "help": f"{words} (default {default})"}


def main() -> int:
    """Check the model, start, wait."""
    given = arguments(
        __doc__,
        config=MODEL,
        first="MODEL",
        host=flag("127.0.0.1", "the address to listen at"),
        port=flag(8000, "the port"),
        address=flag("", "a Ray cluster to join; else a local one"),
        max_bytes=flag(32 * 2**20, "bytes of a request"),
        max_images=flag(64, "images of a request"),
        max_pixels=flag(50_000_000, "pixels of an image"),
        batch=flag(32, "images that a backbone takes at a time"),
        workspace=flag("", "of models:/…: where jobs.fit registered it, and where workers read it"),
        tracking_uri=flag("", "of models:/…: MLflow's server; else the workspace's own database"),
    )
    from clipray.config import Compute, Tracking
    from clipray.errors import ConfigError
    from clipray.steps import cluster, labelling
    from clipray.store import Store

    if given.config.startswith(labelling.REGISTRY) and not given.workspace:
        raise ConfigError(
            f"{given.config}: add --workspace, the one that jobs.fit registered it in"
        )
    store = Store(given.workspace or ".")
    model, folder = labelling.model_of(store, given.config, Tracking(uri=given.tracking_uri))
    from clipray.fusion import Fusion

    fusion = Fusion(folder)
    fusion.refuse_transductive()
    say(f"model   {fusion.name}: {len(fusion.specs)} backbones, {len(fusion.classnames)} classes")
    compute = Compute(address=given.address)
    resources = cluster.connect(compute, given.verbose)
    from clipray.steps.predict import serve

    limits = serve.Limits(given.max_bytes, given.max_images, given.max_pixels)
    device, cpus = cluster.device(compute, resources), resources["CPU"]
    url = serve.start(model, fusion, limits, given.host, given.port, device, cpus, given.batch)
    finish({"url": url, "model": folder.path, "name": fusion.name})
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        while True:
            signal.pause()
    except KeyboardInterrupt:
        serve.stop()
    return 0


if __name__ == "__main__":
    run(main)
