"""Fit one fusion of backbones and keep it as a fused model: a folder to load, to register, to predict with.

    python -m jobs.fit configs/fit.yaml                                offline, a minute on a laptop
    python -m jobs.fit configs/fit.yaml --set shots=all                every labelled image of the train split
    python -m jobs.fit configs/fit.yaml --set shots=0                  no label at all: class names only
    python -m jobs.fit my.yaml --set from_campaign=configs/demo.yaml --set dataset=digits
    python -m jobs.predict configs/predict.yaml                        then: label a collection with it

With `from_campaign` the campaign's methods are compared on the support set alone, by cross-validation, and the best one
is taken; test images have no say. The model is logged to MLflow and registered under its name, with an alias. The last
line on stdout is one JSON object: model (the folder), name, head, fuser, figures, registered, mlflow.
"""

from clipray import config
from clipray.config.predict import Fit
from clipray.progress import working
from jobs import arguments, finish, naming, run, say, tracked

CONFIG = "a fit's YAML file, such as configs/fit.yaml"


def main() -> int:
    """Embed what is missing, fit, keep, register."""
    given = arguments(__doc__, config=CONFIG)
    say(f"reading {given.config}")
    wanted = config.load(Fit, given.config, given.set)
    from clipray.steps import fitting as lessons
    from clipray.steps.cluster import check_lasting
    from clipray.steps.predict import fit, register

    with naming(given.config):
        lessons.check(wanted)
    place = lessons.workspace(wanted)
    check_lasting(workspace=place)
    register.check(wanted, place)
    store, lesson = lessons.lesson(wanted, given.verbose)
    address = lessons.address(store, wanted.name, lesson)
    if store.manifest(address) is None:
        with working(f"fitting {wanted.name}"):
            fit.make(store, wanted.name, address, lesson)
    with working("recording it in MLflow"):
        result = register.register(wanted, store, address)
    say(f"model   {result['model']}")
    if kept := result["figures"].get("which_backbones"):
        top1, low, high = (100 * value for value in kept["support_top1"])
        say(
            f"kept {', '.join(kept['backbones'])}: {top1:.1f} % [{low:.1f}, {high:.1f}] on the support set; "
            f"{100 * kept['best_in']:.0f} % of its resamples choose them"
        )
    if result["cascade"]:
        say(f"cascade {result['cascade']['why']}")
    code = tracked(result)
    finish(result)
    return code


if __name__ == "__main__":
    run(main)
