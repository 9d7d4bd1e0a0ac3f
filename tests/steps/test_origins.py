"""What a report says of where its numbers come from."""

from clipray.config import Campaign, parse
from clipray.numerics.fusers import FUSERS
from clipray.steps import origins


def campaign(**changes) -> Campaign:
    given = {"name": "c", "workspace": "w", "datasets": ["digits"], "backbones": ["shipped"]}
    return parse(Campaign, given | changes, "c.yaml")


def test_every_method_of_a_campaign_has_the_sentence_of_its_registry():
    own = {"name": "mine", "fuser": "nlc", "settings": {"epochs": 7}}
    found = origins.methods(campaign(fusers=["log_avg", own], shots=[1]))
    assert found["log_avg"] == FUSERS["log_avg"].about
    assert found["mine"] == f"{FUSERS['nlc'].about} Here with epochs 7."


def test_the_command_has_no_secret():
    said = origins.command(["/x/jobs/run.py", "a.yaml", "--set", "workspace=s3://me:pass@host/b"])
    assert said.startswith("python -m jobs.run a.yaml --set ")
    assert "pass" not in said
