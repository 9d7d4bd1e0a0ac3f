"""What a run with nothing to do asks of an S3 bucket: little for each dataset, however many backbones there are."""

import itertools

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from clipray import snapshot
from clipray.artefacts import cards, classifiers
from clipray.config import Campaign
from clipray.steps import campaign as steps
from clipray.steps import campaign_ids, failures, outlook
from clipray.steps.tally import Tally
from clipray.steps.todo import Plan, classifier_place

BACKBONES = ("rn-32", "rn-48", "vit-p8-40", "vit-p6-36")
numbers = itertools.count()


def dataset(root, name: str) -> str:
    """A dataset of ten train and ten test images, which are none; its YAML file."""
    for split in ("train", "test"):
        cells = [f"{name} {split} {row}".encode() for row in range(10)]
        table = pa.table({"image": cells, "label": [row % 2 for row in range(10)]})
        (root / name).mkdir(parents=True, exist_ok=True)
        pq.write_table(table, root / name / f"{split}-0.parquet")
    entry = {"name": name, "format": "parquet", "uri": str(root / name)}
    entry |= {"splits": ["train", "test"], "classnames": ["x", "y"], "templates": ["a {c}"]}
    (root / f"{name}.yaml").write_text(yaml.safe_dump(entry))
    return str(root / f"{name}.yaml")


def declare(todo: Plan) -> None:
    """Declare done what a plan lacks, as workers and the driver do, without a model."""
    store, precision = todo.store, todo.campaign.precision
    for spec in todo.specs:
        card = {"scale": 100.0, "bias": 0.0, "seconds_per_image": 1.0}
        cards.write(store, spec, precision, card, "cpu")
        for name, prompts in todo.prompts.items():
            made_of = classifiers.what(spec, precision, prompts)
            store.finish(classifier_place(todo, spec, name), made_of)
    told = {
        place: dict.fromkeys(work.addresses, Tally(set(work.todo)))
        for place, work in todo.works.items()
    }
    campaign_ids.found(todo, told)
    for work in todo.works.values():
        tally = Tally({shard.name for shard in work.shards()}, int(work.index.content, 16))
        failures.finish(store, work, 0, {}, dict.fromkeys(work.addresses, tally))
    snapshot.refresh(store, todo.prompts)


@pytest.fixture
def asked(requests, tmp_path):
    """Counts the requests of a run with nothing to do, over datasets and backbones."""

    def count(sets: int, backbones: int) -> int:
        config = Campaign(
            workspace=f"s3://bucket/requests-{next(numbers)}",
            datasets=[dataset(tmp_path, f"set{number}") for number in range(sets)],
            backbones=BACKBONES[:backbones],
            precision="fp32",
            shots=(1,),
            seeds=1,
        )
        declare(steps.plan(config, dry=True))
        requests.lines.clear()
        todo = steps.plan(config, dry=True)
        steps._settle(todo, {}, {})
        facts = outlook.outlook(todo)
        assert facts["images_to_embed"] == facts["classifiers_to_compute"] == 0
        assert facts["evaluation"]["to_evaluate"] == sets
        return sum("/backbones/" not in line for line in requests.lines)

    return count


def test_requests_do_not_grow_with_backbones(asked):
    assert asked(2, 1) == asked(2, 4)


def test_each_dataset_costs_few_requests(asked):
    assert asked(12, 2) - asked(4, 2) <= 10
