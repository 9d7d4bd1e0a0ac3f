"""Backbone cards: counted operations against published ones, and what a card costs to read."""

import pytest

from clipray import backbones
from clipray.artefacts import cards
from clipray.config import Backbone
from clipray.steps.embed import measure
from clipray.store import Store

SHIPPED = Backbone(
    name="vit-p6-36",
    architecture="clipray-vit-p6-36",
    config="backbones/vit-p6-36/clipray-vit-p6-36.json",
    weights="backbones/vit-p6-36/model.safetensors",
)


@pytest.mark.parametrize(("architecture", "published"), [("ViT-B-32", 8.82), ("RN50", 12.22)])
def test_operations_are_those_that_open_clip_publishes(architecture, published):
    """Image GFLOPs of open_clip's docs/model_profile.csv; untrained weights cost the same."""
    import open_clip

    model = open_clip.create_model(architecture).eval()
    encoder = backbones.Encoder(
        Backbone(name="x", architecture=architecture, pretrained="none"), model, "cpu", "fp32"
    )
    assert measure.gflops(encoder) == pytest.approx(published, abs=0.006)


def test_a_card_is_measured_once_and_read_back(tmp_path):
    store, encoder = Store(str(tmp_path)), backbones.load(SHIPPED)
    assert cards.read(store, SHIPPED, "fp32") is None
    measure.write(store, encoder, "cpu")
    card = cards.read(store, SHIPPED, "fp32")
    measure.write(store, encoder, "cpu")
    assert cards.read(store, SHIPPED, "fp32") == card
    assert card["memory_mb"] == pytest.approx(4 * card["image_parameters"] / 1e6)
    cost = cards.cost(card)
    assert cost == {
        "gflops": card["image_gflops"],
        "latency_ms": pytest.approx(1000 * card["seconds_per_image"]),
        "memory_mb": card["memory_mb"],
    }
    assert cards.cost({"dim": 4}) == {}
