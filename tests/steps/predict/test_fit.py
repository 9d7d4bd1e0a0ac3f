"""A fused model says what the evaluation of the same method says, and is what was written or nothing."""

import json
import pickle
import shutil
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from clipray import images, sources
from clipray.artefacts import evaluations as evaluate
from clipray.artefacts import fused_model
from clipray.config import Backbone, Fuser, Head, parse
from clipray.config.predict import Cascade, Fit
from clipray.encoding import column
from clipray.errors import ConfigError
from clipray.fusion import Fusion
from clipray.shots import ALL
from clipray.steps import fitting as lessons
from clipray.steps.fitting import check
from clipray.steps.predict import afford, choose, fit, register, write
from clipray.steps.predict.lesson import Lesson
from tests.sources.made import picture
from tests.steps.worlds import BACKBONES, CLASSES, DIM, World

HEADS = ("zero_shot", "tip_adapter", "linear_probe")
FUSERS = (
    "log_avg",
    "c_log_avg",
    "weighted",
    "nlc",
    "guarded_pool",
    "guarded_single",
    "best_single_on_support",
)
CARD = {
    "dim": DIM,
    "image_gflops": 1.0,
    "scale": 10.0,
    "bias": 0.0,
    "preprocess": [[8, 8], "bicubic", "shortest", 0],
}


def lesson(world: World, task: evaluate.Task, methods, **changes) -> Lesson:
    """What `lessons.lesson` would have gathered of a made world."""
    values = {
        "dataset": "made",
        "prompts": {"classnames": [f"class {c}" for c in range(CLASSES)], "templates": ["{c}"]},
        "backbones": task.backbones,
        "origins": tuple({} for _ in task.backbones),
        "classifiers": task.classifiers,
        "scales": task.scales,
        "precision": "fp32",
        "max_pixels": 1000,
        "train": task.embeddings["train"],
        "tested": ("",),
        "methods": tuple(methods),
        "by": "nll",
        "shots": 4,
        "seed": 1,
        "seeds": task.seeds,
        "folds": task.folds,
        "specs": tuple(Backbone(name=name, architecture="local-dir:x") for name in task.backbones),
        "test_ids": frozenset(world.ids["test"]),
        "cards": (CARD,) * len(task.backbones),
    }
    return Lesson(**values | changes)


def method(head: str, fuser: str) -> choose.Candidate:
    return choose.Candidate(Head(name=head, head=head), Fuser(name=fuser, fuser=fuser))


def made(world: World, told: Lesson, name: str = "made") -> Path:
    place = fused_model.address(world.store, name, told.what)
    fit.make(world.store, name, place, told)
    return Path(world.store.place(place))


def test_it_says_what_the_evaluation_says(tmp_path):
    world = World(tmp_path)
    task = world.task(heads=HEADS, fusers=FUSERS[:-1])
    _, outcomes = world.frames(task)
    order = np.argsort(world.ids["test"])
    embeddings = [world.embeddings["test", name][order].astype(np.float32) for name in BACKBONES]
    for head in HEADS:
        for fuser in FUSERS:
            fusion = Fusion(
                fused_model.read(made(world, lesson(world, task, [method(head, fuser)])))
            )
            answers = fusion.answers(embeddings)
            free = fuser == "log_avg" and head == "zero_shot"
            shots, seed = (0, 0) if free else (4, 1)
            own = outcomes[
                (outcomes["head"] == head)
                & (outcomes["method"] == fuser)
                & (outcomes["shots"] == shots)
                & (outcomes["seed"] == seed)
            ].sort_values("image_id")
            assert len(own) == len(answers) == 60
            assert [one["class"] for one in answers] == own["prediction"].tolist()
            got = np.array([one["probability"] for one in answers], np.float32)
            assert np.array_equal(got, own["confidence"].to_numpy()), (head, fuser)


def test_of_many_backbones_it_keeps_those_that_the_support_set_fuses_best(tmp_path):
    """The model is that of a lesson with these backbones alone, and a backbone of noise is not among them."""
    world = World(tmp_path)
    noise = np.random.default_rng(5)
    for split in world.ids:
        shape = world.embeddings[split, "beta"].shape
        world.embeddings[split, "beta"] = noise.normal(size=shape)
    asked = [method("tip_adapter", "c_log_avg")]
    told = lesson(world, world.task(), asked, which_backbones=2)
    kept = fused_model.read(made(world, told))
    assert [one["entry"]["name"] for one in kept.about["backbones"]] == ["alpha", "gamma"]
    said = kept.about["figures"]["which_backbones"]
    assert said["backbones"] == ["alpha", "gamma"]
    assert said["gflops"] == 2
    value, low, high = said["support_top1"]
    assert low <= value <= high
    two = {key: getattr(told, key)[::2] for key in afford.EACH}
    alone = fused_model.read(made(world, lesson(world, world.task(), asked, **two), "alone"))
    assert set(kept.tensors) == set(alone.tensors)
    for name, tensor in kept.tensors.items():
        assert np.array_equal(tensor, alone.tensors[name]), name


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"which_backbones": 4}, "4 are asked for, and there are 3"),
        ({"which_backbones": 1, "cards": (CARD | {"image_gflops": None},) * 3}, "is not known"),
    ],
)
def test_backbones_that_cannot_be_chosen_from_are_told(tmp_path, changes, words):
    world = World(tmp_path)
    told = lesson(world, world.task(), [method("zero_shot", "log_avg")], **changes)
    with pytest.raises(ConfigError, match=words):
        made(world, told)


def test_a_cascade_runs_backbones_in_order_of_cost_and_lets_sure_images_go(tmp_path):
    world = World(tmp_path, train=400)
    task = world.task()
    cards = tuple(CARD | {"image_gflops": cost} for cost in (4.0, 1.0, 2.0))
    embeddings = [world.embeddings["test", name].astype(np.float32) for name in BACKBONES]
    asked = {
        "loose": Cascade(max_accuracy_drop=0.9),
        "strict": Cascade(max_accuracy_drop=0.0),
        None: None,
    }
    found = {}
    for name, cascade in asked.items():
        told = lesson(
            world, task, [method("zero_shot", "c_log_avg")], cards=cards, cascade=cascade, shots=16
        )
        found[name] = Fusion(fused_model.read(made(world, told, name or "full")))
    assert found["loose"].stages[0].backbones == (1,)
    assert [len(stage.backbones) for stage in found["loose"].stages] == [1, 2, 3]
    full = found[None].answers(embeddings)
    # that nothing is lost cannot be promised by any support set, so nobody leaves: it is the full fusion, bit by bit
    strict = found["strict"].answers(embeddings)
    assert [row["probability"] for row in strict] == [row["probability"] for row in full]
    loose = found["loose"].answers(embeddings)
    first = [row for row in loose if row["backbones_used"] == [BACKBONES[1]]]
    assert len(first) > 30
    assert all(1 <= row["gflops"] < 2 for row in first)
    assert all(row["gflops"] > 7 for row in full)
    about = found["strict"].about["cascade"]["promise"]
    assert not about["kept"]
    assert "cannot be promised" in about["why"]


class Looked:
    """An encoder of crops that are numbers of images; counts how many it is given."""

    def __init__(self, embeddings_ND):
        self.embeddings_ND, self.images_seen = embeddings_ND, 0

    def images(self, crops_NHWC, batch_size):
        self.images_seen += len(crops_NHWC)
        return self.embeddings_ND[crops_NHWC[:, 0, 0, 0]]


def test_later_backbones_see_only_what_is_left_and_rows_are_those_of_a_cascade_in_one_piece(
    tmp_path,
):
    world = World(tmp_path, train=400)
    cards = tuple(CARD | {"image_gflops": cost} for cost in (4.0, 1.0, 2.0))
    told = lesson(
        world,
        world.task(),
        [method("zero_shot", "c_log_avg")],
        cards=cards,
        cascade=Cascade(max_accuracy_drop=0.3),
        shots=16,
    )
    fusion = Fusion(fused_model.read(made(world, told)))
    ids = [f"image{n}" for n in range(60)]
    rows = pa.table({"image_id": ids, "key": ids, "label": pa.nulls(60, pa.int64())})
    task = {"rows": rows, "errors": [None] * 60, "cropped": list(range(60)), "embeddings": {}}
    task["stages"] = [None] * 60
    crops = np.arange(60, dtype=np.uint8)[:, None].repeat(3, 1)  # one pixel each
    group = images.Preprocess((1, 1), "bicubic", "shortest", 0)
    table = pa.table(
        {
            "task": [pickle.dumps(task)],
            column(group): pa.array([crops.tobytes()], pa.large_binary()),
        }
    )
    seen = []
    for number in fusion.cascade.order:
        actor = object.__new__(write.Encode)  # without loading a model
        actor.fusion, actor.number, actor.group = fusion, number, group
        actor.computing = threading.Lock()
        actor.keep, actor.broken, actor.precision, actor.batch_size = None, None, "fp32", 7
        actor.encoder = Looked(world.embeddings["test", BACKBONES[number]].astype(np.float32))
        table = actor(table)
        seen.append(actor.encoder.images_seen)
    label = object.__new__(write.Label)
    label.fusion, label.targets = fusion, False
    found = label.label(pickle.loads(table["task"][0].as_py())).to_pylist()

    whole = [world.embeddings["test", name].astype(np.float32) for name in BACKBONES]
    expected = fusion.answers(whole)
    stages = [len(row["backbones_used"]) for row in expected]
    assert seen == [60, sum(n > 1 for n in stages), sum(n > 2 for n in stages)]
    assert 0 < seen[1] < 60
    for row, other in zip(found, expected, strict=True):
        assert (row["label"], row["backbones_used"]) == (other["label"], other["backbones_used"])
        assert row["probability"] == pytest.approx(other["probability"], abs=1e-6)


def test_a_cascade_needs_labels_and_a_fuser_that_one_image_is_enough_for():
    values = {"workspace": "w", "backbones": ["rn-32"], "dataset": "digits"}
    cascade = {"max_accuracy_drop": 0.01}
    with pytest.raises(ConfigError, match="taught by unlabelled images"):
        check(parse(Fit, values | {"cascade": cascade, "fuser": "guarded_pool"}, "here"))
    with pytest.raises(ConfigError, match="`shots` is 0"):
        check(parse(Fit, values | {"cascade": cascade, "shots": 0}, "here"))
    with pytest.raises(ConfigError, match="give either"):
        parse(Fit, values | {"cascade": cascade | {"max_gflops": 1}}, "here")
    check(parse(Fit, values | {"cascade": cascade}, "here"))


def test_a_campaign_that_holds_images_out_for_fusers_makes_no_fused_model(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        "workspace: w\ndatasets: [digits]\nbackbones: [rn-32]\nshots: [4]\nheld_out: 0.5\n"
    )
    with pytest.raises(ConfigError, match="holds images out from heads"):
        check(parse(Fit, {"from_campaign": str(path)}, "here"))
    path.write_text(path.read_text().replace("0.5", "0"))
    check(parse(Fit, {"from_campaign": str(path)}, "here"))


def test_all_shots_take_the_whole_train_split_and_few_what_may_be_drawn(tmp_path, monkeypatch):
    class Planned(Exception):
        """Stops before anything is embedded."""

    def stop(todo):
        raise Planned(len(todo.works["digits", "train"].index))

    monkeypatch.setattr(lessons.steps, "prepare", stop)
    values = {"workspace": str(tmp_path), "backbones": ["rn-32"], "dataset": "digits"}
    values |= {"fuser": "c_log_avg", "limit": 200}
    sizes = {}
    for shots in (1, "all"):
        with pytest.raises(Planned) as found:
            lessons.lesson(parse(Fit, values | {"shots": shots}, "here"))
        sizes[shots] = found.value.args[0]
    assert sizes == {1: 30, "all": 200}  # one of each class, and two to spare


def test_neither_batch_nor_order_changes_a_row(tmp_path):
    world = World(tmp_path)
    task = world.task()
    fusion = Fusion(
        fused_model.read(made(world, lesson(world, task, [method("tip_adapter", "nlc")])))
    )
    embeddings = [world.embeddings["test", name].astype(np.float32) for name in BACKBONES]
    whole = fusion.answers(embeddings)
    backwards = fusion.answers([e[::-1] for e in embeddings])[::-1]
    alone = [fusion.answers([e[n : n + 1] for e in embeddings])[0] for n in range(60)]
    for other in (backwards, alone):
        assert [one["label"] for one in other] == [one["label"] for one in whole]
        got, wanted = ([one["probability"] for one in rows] for rows in (other, whole))
        assert np.allclose(got, wanted, rtol=0, atol=1e-6)


def test_a_backbone_without_weight_need_not_run(tmp_path):
    world = World(tmp_path)
    task = world.task()
    told = lesson(world, task, [method("zero_shot", "best_single_on_support")])
    fusion = Fusion(fused_model.read(made(world, told)))
    (used,) = fusion.used
    embeddings = [world.embeddings["test", name].astype(np.float32) for name in BACKBONES]
    sparse = [e if m == used else None for m, e in enumerate(embeddings)]
    one, other = fusion.answers(embeddings), fusion.answers(sparse)
    assert [row["probability"] for row in one] == [row["probability"] for row in other]
    assert other[0]["backbones_used"] == [BACKBONES[used]]
    assert other[0]["gflops"] < one[0]["gflops"]


def test_a_method_is_chosen_by_the_support_set_alone(tmp_path):
    """With one backbone that sees nothing, the one that weighs them wins over the plain average; test has no say."""
    world = World(tmp_path, train=80)
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        shape = world.embeddings[split, "alpha"].shape
        for name in ("alpha", "beta"):
            world.embeddings[split, name] = 3 * rng.normal(size=shape)
    task = world.task()
    methods = [method("zero_shot", name) for name in ("mean_logits", "best_single_on_support")]
    about = fused_model.read(made(world, lesson(world, task, methods))).about
    scores = {one["fuser"]: one for one in about["figures"]["chosen_from"]}
    assert scores["best_single_on_support"]["nll"] < scores["mean_logits"]["nll"]
    assert about["fuser"]["name"] == "best_single_on_support"
    assert about["figures"]["held_out"]["images"] == 16
    labels = world.labels["test"].copy()
    world.labels["test"] = (labels + 1) % CLASSES  # other test labels, the same choice
    for name in BACKBONES:
        world.write("test", name)
    again = fused_model.read(made(world, lesson(world, task, methods), "again")).about
    assert again["figures"] == about["figures"]


def test_all_labels_and_none(tmp_path):
    world = World(tmp_path)
    task = world.task()
    every = lesson(world, task, [method("zero_shot", "c_log_avg")], shots=ALL)
    support = fused_model.read(made(world, every)).about["support"]
    assert (support["shots"], support["images"]) == ("all", 40)
    assert support["classes_with_fewer_images"] == 0
    none = lesson(world, task, [method("zero_shot", "log_avg")], shots=0, train=())
    assert fused_model.read(made(world, none)).about["support"] == {"shots": 0, "images": 0}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    world = World(tmp_path_factory.mktemp("world"))
    return made(world, lesson(world, world.task(), [method("zero_shot", "c_log_avg")]))


def _lacks(folder: Path) -> None:
    (folder / "tensors.safetensors").unlink()


def _adds(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")


def _other_order(folder: Path) -> None:
    path = folder / "fused_model.json"
    about = json.loads(path.read_text())
    about["classnames"].reverse()
    path.write_text(json.dumps(about))


def _other_format(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))


def _broken(folder: Path) -> None:
    (folder / "manifest.json").write_text("{")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_lacks, "lacks tensors.safetensors"),
        (_adds, "holds notes.txt, which is no part of it"),
        (_other_order, "fused_model.json is not the file that was written"),
        (_other_format, "has format 99, this clipray reads 1"),
        (_broken, "is no fused model"),
        (shutil.rmtree, "is not there"),
    ],
)
def test_a_folder_that_is_not_whole_is_told(whole, tmp_path, change, words):
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    assert fused_model.read(folder).digest == fused_model.read(whole).digest
    change(folder)
    with pytest.raises(ConfigError, match=words) as told:
        fused_model.read(folder)
    assert str(told.value).count("\n") == 0


def test_it_holds_no_pickle(whole):
    kinds = {path.suffix for path in whole.rglob("*") if path.is_file()}
    assert kinds == {".json", ".safetensors"}


def test_the_registry_says_what_a_cascade_promises():
    told = {
        "fuser": "c_log_avg",
        "backbones": ["vit", "rn"],
        "head": "zero_shot",
        "classes": 3,
        "dataset": "shapes",
        "support": {"images": 48},
        "figures": {},
        "cascade": None,
    }
    assert "cascade" not in register.note(told)
    why = "with 90% confidence at most 5.00% of images are right in the full fusion and wrong in the cascade"
    words = register.note(told | {"cascade": {"why": why, "gflops": 0.0432}})
    assert f"A cascade: {why}. Held out, an image takes 0.0432 GFLOPs on average." in words


def test_nothing_learns_from_images_of_the_test_split(tmp_path, local_ray):
    """And none of these is embedded: they are read for what they are, and no more."""
    for number in range(24):
        kind = f"class {number % 3}"
        for split, first in (("train", 0), ("test", 12)):  # half of each split stands in the other
            place = tmp_path / "set" / split / kind / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(picture(first + number))
    (tmp_path / "set" / "zeroshot_classification_templates.txt").write_text("a {c}.\n")
    values = {"workspace": str(tmp_path / "w"), "dataset": str(tmp_path / "set"), "shots": 4}
    values |= {"backbones": ["rn-32"], "fuser": "log_avg", "precision": "fp32"}
    store, told = lessons.lesson(parse(Fit, values, "here"))
    test = {sources.image_id(picture(number)) for number in range(12, 36)}
    assert set(told.test_ids) == test
    rows = store.tables(told.train[0], store.manifest(told.train[0])["shards"])
    train = {sources.image_id(picture(number)) for number in range(24)}
    seen = set(rows["image_id"].to_pylist())
    assert seen <= train
    # four of each class are left to learn from, once those that stand in both are known
    assert len(seen - test) == 12
    assert store.names("embeddings/set") == {"train"}
