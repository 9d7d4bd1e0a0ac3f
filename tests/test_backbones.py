"""The door to open_clip: our path to an embedding equals open_clip's own, whatever the checkpoint's form."""

import shutil

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from clipray import backbones, catalog, images
from clipray.config import Backbone
from clipray.errors import ConfigError
from clipray.numerics.heads.zero_shot import alike, zero_shot


def entry(name: str) -> Backbone:
    return catalog.backbones([name])[0]


def picture(seed: int, width: int = 61, height: int = 47) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("name", ["rn-32", "rn-48", "vit-p8-40", "vit-p6-36", "convnext-48"])
def test_embeddings_equal_those_of_open_clips_own_path(name):
    """Cosine ≥ 0.9999 with open_clip's transform and `encode_image` on the same model."""
    encoder = backbones.load(entry(name))
    pictures = [picture(seed) for seed in range(4)]
    config = encoder.model.visual.preprocess_cfg
    transform = open_clip.transform.image_transform_v2(
        open_clip.transform.PreprocessCfg(**config), is_train=False
    )
    with torch.inference_mode():
        theirs = encoder.model.encode_image(torch.stack([transform(p) for p in pictures]))
    ours = encoder.images(
        np.stack([images.crop(p, encoder.preprocess) for p in pictures]), batch_size=3
    )
    cosine = torch.nn.functional.cosine_similarity(torch.from_numpy(ours), theirs)
    assert cosine.min() >= 0.9999
    assert ours.shape == (4, encoder.dim)
    assert np.abs(ours[0] - ours[1]).max() > 1e-3  # different images, different embeddings


def test_the_classifier_equals_open_clips_builder():
    encoder = backbones.load(entry("vit-p6-36"))
    names, templates = ["cat", "traffic light"], ["a photo of a {c}.", "a drawing of a {c}."]
    functions = [lambda name, t=t: t.replace("{c}", name) for t in templates]
    theirs = open_clip.build_zero_shot_classifier(
        encoder.model, encoder.tokenizer, names, functions
    )
    assert np.allclose(encoder.classifier(names, templates), theirs.T.numpy(), atol=1e-5)


def test_names_that_the_text_tower_cannot_tell_apart_have_one_vector_and_one_logit():
    """Rounding differs with a text's place in its batch; it must not decide between two names that are the same."""
    encoder = backbones.load(entry("vit-p6-36"))
    names = [
        "cat",
        *(f"a {colour} thing" for colour in ("red", "blue", "green")),
        "CAT",
        "dog",
        " cat ",
    ]
    classifier = torch.from_numpy(encoder.classifier(names, ["a photo of a {c}.", "{c}"]))
    same = (classifier == classifier[0]).all(1).tolist()
    assert [name for name, one in zip(names, same, strict=True) if one] == ["cat", "CAT", " cat "]
    assert alike(classifier)[[0, 4, 6, 5]].tolist() == [True, True, True, False]
    images = torch.randn(50, classifier.shape[1], generator=torch.Generator().manual_seed(0))
    logits = zero_shot(images, classifier, encoder.scale, encoder.bias)
    assert torch.equal(logits[:, 0], logits[:, 4])
    assert torch.equal(logits[:, 0], logits[:, 6])


def test_the_scale_is_the_models_own():
    encoder = backbones.load(entry("vit-p6-36"))
    assert encoder.scale == pytest.approx(float(encoder.model.logit_scale.exp()))
    assert encoder.bias == 0


def test_a_checkpoint_holds_only_the_token_rows_that_were_seen(tmp_path):
    model = backbones.untrained("backbones/vit-p6-36/clipray-vit-p6-36.json")
    table = model.token_embedding.weight.data
    table[[5, 49406]] = torch.randn(2, table.shape[1], generator=torch.Generator().manual_seed(0))
    path = tmp_path / "model.safetensors"
    backbones.save(model, path)
    assert path.stat().st_size < 2 * sum(p.numel() for p in model.parameters()) - table.numel()
    spec = entry("vit-p6-36").model_copy(update={"weights": str(path)})
    again = backbones.create(spec)
    for key, value in model.state_dict().items():
        assert torch.allclose(again.state_dict()[key], value.half().to(value.dtype)), key


def test_a_full_checkpoint_of_the_users_own_loads_through_the_same_door(tmp_path):
    model = backbones.untrained("backbones/vit-p6-36/clipray-vit-p6-36.json")
    model.token_embedding.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    torch.save(model.state_dict(), tmp_path / "own.pt")
    spec = entry("vit-p6-36").model_copy(update={"weights": str(tmp_path / "own.pt")})
    again = backbones.create(spec).state_dict()
    assert all(torch.equal(again[key], value) for key, value in model.state_dict().items())


def test_another_files_content_is_another_what(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(name.encode())
    specs = [
        Backbone(name="x", architecture="ViT-B-32", weights=str(tmp_path / name), like="openai")
        for name in ("a", "b")
    ]
    assert backbones.origin(specs[0]) != backbones.origin(specs[1])
    renamed = specs[0].model_copy(update={"name": "y"})
    assert backbones.origin(renamed) == backbones.origin(specs[0])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "ViT-Z-99", "pretrained": "openai"}, "no architecture 'ViT-Z-99'"),
        ({"architecture": "ViT-B-32", "pretrained": "nobody"}, "no tag 'nobody'"),
        (
            {"architecture": "ViT-B-32", "weights": "/nowhere/at/all.pt", "like": "openai"},
            "there is no file /nowhere/at/all.pt",
        ),
    ],
)
def test_what_cannot_be_loaded_is_said_clearly(changes, words):
    with pytest.raises(ConfigError, match=words):
        backbones.create(Backbone(name="x", **changes))


def test_quickgelu_is_the_tags_own():
    """The pair of architecture and tag decides the activation; a mismatch changes results in silence."""
    for spec in catalog.backbones(["openai"]):
        tag = open_clip.get_pretrained_cfg(spec.architecture, spec.pretrained)
        config = open_clip.get_model_config(spec.architecture)
        assert bool(tag.get("quick_gelu")) == bool(config.get("quick_gelu")), spec.name


def test_half_precision_stays_close_to_fp32():
    """Cosine ≥ 0.999 between bf16 and fp32 embeddings of the same images."""
    crops = np.stack(
        [
            images.crop(picture(seed), images.Preprocess((40, 40), "bicubic", "shortest", 0))
            for seed in range(4)
        ]
    )
    exact, half = (backbones.load(entry("vit-p8-40"), p).images(crops, 4) for p in ("fp32", "bf16"))
    cosine = (exact * half).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(half, axis=1)
    assert cosine.min() >= 0.999


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_tower_makes_the_same_embeddings_of_any_number_of_images():
    spec = entry("vit-p6-36")
    plain, compiled = backbones.load(spec), backbones.load(spec, compiled=4)
    noise = np.random.default_rng(0)
    crops_NHWC = noise.integers(0, 256, (9, *plain.preprocess.size, 3), np.uint8)
    for count in (0, 3, 4, 9):
        own_ND = compiled.images(crops_NHWC[:count], batch_size=64)
        np.testing.assert_allclose(own_ND, plain.images(crops_NHWC[:count], 4), atol=1e-4)


def test_a_tower_that_does_not_compile_is_said_clearly(monkeypatch):
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", ("/no/such/compiler",))
    monkeypatch.setattr(config, "force_disable_caches", True)
    with pytest.raises(ConfigError, match=r"vit-p6-36: torch\.compile fails.*`compute\.compile`"):
        backbones.load(entry("vit-p6-36"), compiled=3)
