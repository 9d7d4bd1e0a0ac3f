"""Weights of each family of open_clip, in each form that a file can have, against open_clip's own path.

The models are of the families' own classes with random weights, cut to a few layers; with CLIPRAY_WHOLE_MODELS=1
they are whole.
"""

import copy
import json
import os

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from clipray import backbones, images
from clipray.config import Backbone, parse
from clipray.errors import ConfigError

# family → (architecture, tag whose preprocessing and activation it has, smaller timm tower)
FAMILIES = {
    "resnet": ("RN50-quickgelu", "openai", ""),
    "vit": ("ViT-B-32", "laion2b_s34b_b79k", ""),
    "vit-quickgelu": ("ViT-B-32-quickgelu", "openai", ""),
    "siglip": ("ViT-B-16-SigLIP", "webli", "vit_tiny_patch16_224"),
    "siglip2": ("ViT-B-16-SigLIP2", "webli", "vit_tiny_patch16_224"),
    "mobileclip": ("MobileCLIP-S1", "datacompdr", "fastvit_mci0"),
    "convnext": ("convnext_base_w", "laion2b_s13b_b82k", "convnext_atto"),
    "coca": ("coca_ViT-B-32", "laion2b_s13b_b90k", ""),
    "eva": ("EVA02-B-16", "merged2b_s8b_b131k", "eva02_tiny_patch14_224"),
}
FORMS = ("state_dict", "trained", "safetensors", "torchscript", "local-dir")
WHOLE = bool(os.environ.get("CLIPRAY_WHOLE_MODELS"))
TEXTS = ["a photo of a cat.", "two red traffic lights", "A DRAWING"]


def small(family: str) -> dict:
    """The model config of a family's architecture, cut to size."""
    architecture, _, timm = FAMILIES[family]
    config = open_clip.get_model_config(architecture)
    if WHOLE:
        return config
    config["embed_dim"] = 64
    config["text_cfg"] |= {"width": 64, "heads": 2, "layers": 2}
    if "vocab_size" in config["text_cfg"] and config["text_cfg"]["vocab_size"] > 50000:
        config["text_cfg"]["vocab_size"] = 5000
    if "multimodal_cfg" in config:
        config["multimodal_cfg"] |= {"width": 64, "heads": 2, "layers": 1}
    vision = config["vision_cfg"]
    if timm:
        vision["timm_model_name"] = timm
    elif family == "resnet":
        vision |= {"layers": [1, 1, 1, 1], "width": 32}
    else:
        vision |= {"layers": 2, "width": 128, "head_width": 64}
    return config


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Family → (folder with its model config, the model), made once."""
    known = {}

    def make(family: str):
        if family not in known:
            folder = tmp_path_factory.mktemp(family)
            path = folder / f"small-{family}.json"
            path.write_text(json.dumps(small(family)))
            open_clip.add_model_config(path)
            torch.manual_seed(1)
            model = open_clip.create_model(path.stem, pretrained_text=False).eval()
            # such as trained models have, and not of the default's own making
            model.logit_scale.data.fill_(3.3)
            if model.logit_bias is not None:
                model.logit_bias.data.fill_(-11.2)
            known[family] = path, model
        return known[family]

    return make


def pictures() -> list[Image.Image]:
    drawn = []
    for seed, (width, height) in enumerate([(301, 247), (200, 333), (640, 480)]):
        noise = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
        drawn.append(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))
    return drawn


def theirs(model, architecture: str, tag: str) -> torch.Tensor:
    """open_clip's path: its transform of the tag, its encoder."""
    config = open_clip.get_pretrained_cfg(architecture, tag)
    settings = open_clip.transform.merge_preprocess_dict(
        open_clip.transform.PreprocessCfg(), config
    )
    settings["size"] = model.visual.image_size
    settings = open_clip.transform.PreprocessCfg(**settings)
    transform = open_clip.transform.image_transform_v2(settings, is_train=False)
    with torch.inference_mode():
        return model.encode_image(torch.stack([transform(picture) for picture in pictures()]))


def ours(encoder) -> torch.Tensor:
    crops = np.stack([images.crop(picture, encoder.preprocess) for picture in pictures()])
    return torch.from_numpy(encoder.images(crops, batch_size=2))


def least(a: torch.Tensor, b: torch.Tensor) -> float:
    """The least cosine of the rows, in float64."""
    return float(torch.nn.functional.cosine_similarity(a.double(), b.double()).min())


def tokens(model) -> torch.Tensor:
    text = getattr(model, "text", model)
    rows = text.token_embedding.num_embeddings
    length = text.context_length
    ids = torch.randint(1, rows - 2, (3, length), generator=torch.Generator().manual_seed(0))
    ids[:, -4] = rows - 1  # CLIP's end of text is its largest token
    ids[:, -3:] = 0
    return ids


def stored(model, form: str, folder, config) -> dict:
    """The keys of an entry for a model that is stored in one form."""
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    path = folder / {"safetensors": "model.safetensors"}.get(form, f"{form}.pt")
    if form == "state_dict":
        torch.save(state, path)
    elif form == "trained":  # as open_clip's training writes it
        prefixed = {f"module.{key}": value for key, value in state.items()}
        torch.save({"epoch": 3, "name": "x", "state_dict": prefixed}, path)
    elif form == "safetensors":
        save_file({key: value.clone() for key, value in state.items()}, path)
    elif form == "torchscript":
        torch.jit.save(torch.jit.trace(Holder(model), torch.zeros(1)), path)
    return {"architecture": config.stem, "config": str(config), "weights": str(path)}


class Holder(torch.nn.Module):
    """A module with the weights of a model under the same names: a TorchScript archive of every family."""

    def __init__(self, model):
        super().__init__()
        for name, child in copy.deepcopy(model).named_children():
            self.add_module(name, child)
        for name, value in model.named_parameters(recurse=False):
            self.register_parameter(name, torch.nn.Parameter(value.detach().clone()))
        for name, value in model.named_buffers(recurse=False):
            self.register_buffer(name, value.clone())

    def forward(self, x):
        return x * self.logit_scale


def directory(model, family: str, folder, config) -> dict:
    """open_clip's local directory, with a tokenizer where the text tower wants one of its own."""
    architecture, tag, _ = FAMILIES[family]
    told = open_clip.get_pretrained_cfg(architecture, tag)
    settings = {key: told[key] for key in ("mean", "std", "interpolation", "resize_mode")}
    settings["size"] = model.visual.image_size
    both = {"model_cfg": json.loads(config.read_text()), "preprocess_cfg": settings}
    (folder / "open_clip_config.json").write_text(json.dumps(both))
    save_file(
        {key: value.clone().contiguous() for key, value in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    if "hf_tokenizer_name" in both["model_cfg"]["text_cfg"]:
        words(folder)
    return {"architecture": f"local-dir:{folder}"}


def words(folder) -> None:
    """A small tokenizer in the format of the transformers library."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=["<pad>", "</s>", "<unk>"])
    tokenizer.train_from_iterator(TEXTS, trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_open_clips_own(made, tmp_path, family, form):
    """Cosine ≥ 0.99999 for images and texts, scale and bias equal; fp16 and bf16 ≥ 0.999 for images."""
    config, model = made(family)
    architecture, tag, _ = FAMILIES[family]
    if form == "local-dir":
        entry = directory(model, family, tmp_path, config)
    else:
        entry = stored(model, form, tmp_path, config) | {"like": f"{architecture}/{tag}"}
    spec = parse(Backbone, {"name": "x", **entry}, "here")
    encoder = backbones.load(spec)
    expected = theirs(model, architecture, tag)
    assert least(ours(encoder), expected) >= 0.99999
    assert torch.allclose(
        ours(encoder), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max())
    )
    with torch.inference_mode():
        assert (
            least(encoder.model.encode_text(tokens(model)), model.encode_text(tokens(model)))
            >= 0.99999
        )
    assert encoder.scale == float(model.logit_scale.detach().exp())
    assert encoder.bias == (0.0 if model.logit_bias is None else float(model.logit_bias))
    if form == "local-dir":
        tokenizer = open_clip.get_tokenizer(entry["architecture"])
        with torch.inference_mode():
            expected = model.encode_text(tokenizer(TEXTS))
        assert least(encoder.texts(TEXTS), expected) >= 0.99999
        for precision in ("fp16", "bf16"):
            half = backbones.load(spec, precision)
            assert least(ours(half), ours(encoder)) >= 0.999, precision
            assert half.scale == encoder.scale
            assert half.bias == encoder.bias
            assert least(half.texts(TEXTS), encoder.texts(TEXTS)) >= 0.999, precision


def test_quickgelu_is_forced_where_the_tag_has_it(made, tmp_path):
    """A plain architecture with weights like OpenAI's; the features are those of the QuickGELU architecture."""
    _, model = made("vit-quickgelu")
    plain = small("vit-quickgelu")
    plain.pop("quick_gelu")
    path = tmp_path / "plain-vit.json"
    path.write_text(json.dumps(plain))
    entry = stored(model, "state_dict", tmp_path, path) | {"like": "ViT-B-32/openai"}
    encoder = backbones.load(parse(Backbone, {"name": "x", **entry}, "here"))
    expected = theirs(model, "ViT-B-32-quickgelu", "openai")
    assert least(ours(encoder), expected) >= 0.99999
    assert backbones.facts(encoder)["activation"] == {"image": ["QuickGELU"], "text": ["QuickGELU"]}
    gelu = backbones.load(parse(Backbone, {"name": "x", **entry, "like": ""}, "here"))
    largest = float(expected.abs().max())
    assert torch.allclose(ours(encoder), expected, atol=1e-4 * largest)
    assert not torch.allclose(ours(gelu), expected, atol=1e-3 * largest)  # the comparison can fail


def test_quickgelu_is_refused_where_the_tag_has_gelu(made, tmp_path):
    config, model = made("vit-quickgelu")
    entry = stored(model, "state_dict", tmp_path, config) | {"like": "ViT-B-32/laion2b_s34b_b79k"}
    with pytest.raises(ConfigError, match="was trained with GELU"):
        backbones.load(parse(Backbone, {"name": "x", **entry}, "here"))


def test_an_archive_of_openai_has_quickgelu_whatever_the_architecture(made, tmp_path):
    _, model = made("vit-quickgelu")
    plain = small("vit-quickgelu")
    plain.pop("quick_gelu")
    path = tmp_path / "plain-vit.json"
    path.write_text(json.dumps(plain))
    held = Holder(model).half()  # as they are published
    for name, value in (("input_resolution", 224), ("context_length", 77), ("vocab_size", 49408)):
        held.register_buffer(name, torch.tensor(value))
    torch.jit.save(torch.jit.trace(held, torch.zeros(1)), tmp_path / "ViT.pt")
    entry = {"architecture": "plain-vit", "config": str(path), "weights": str(tmp_path / "ViT.pt")}
    encoder = backbones.load(parse(Backbone, {"name": "x", **entry}, "here"))
    assert (
        least(ours(encoder), theirs(model, "ViT-B-32-quickgelu", "openai")) >= 0.9999
    )  # weights in fp16


def test_preprocessing_in_full_is_the_tags_own(made, tmp_path):
    config, model = made("siglip")
    settings = {
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "interpolation": "bicubic",
        "resize_mode": "squash",
    }
    entry = stored(model, "state_dict", tmp_path, config) | {"preprocess": settings}
    encoder = backbones.load(parse(Backbone, {"name": "x", **entry}, "here"))
    assert least(ours(encoder), theirs(model, "ViT-B-16-SigLIP", "webli")) >= 0.99999
    entry["preprocess"] = settings | {"size": 256}
    with pytest.raises(
        ConfigError, match=r"preprocess.size is 256, but small-siglip takes \(224, 224\)"
    ):
        backbones.load(parse(Backbone, {"name": "x", **entry}, "here"))


def test_a_tokenizer_that_is_not_the_text_towers_is_refused(made, tmp_path):
    """open_clip would take CLIP's for a local SigLIP that names none."""
    config, model = made("siglip")
    entry = directory(model, "siglip", tmp_path, config)
    told = json.loads((tmp_path / "open_clip_config.json").read_text())
    told["model_cfg"]["text_cfg"].pop("hf_tokenizer_name")
    (tmp_path / "open_clip_config.json").write_text(json.dumps(told))
    encoder = backbones.load(parse(Backbone, {"name": "x", **entry}, "here"))
    with pytest.raises(ConfigError, match="the tokenizer SimpleTokenizer 49408"):
        encoder.texts(TEXTS)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("pickle", "pickled Python objects"),
        ("garbage", "is damaged"),
        ("empty", "does not load"),
        ("other", "does not load"),
        ("html.safetensors", "does not load"),
    ],
)
def test_what_is_no_checkpoint_of_the_model_is_refused(made, tmp_path, content, words):
    config, model = made("vit")
    path = tmp_path / content
    if content == "pickle":
        torch.save({"state_dict": model.state_dict(), "picture": pictures()[0]}, path)
    elif content == "other":
        torch.save({"visual.conv1.weight": torch.zeros(3)}, path)
    else:
        path.write_bytes(b"" if content == "empty" else b"<html>not found</html>")
    entry = {"architecture": config.stem, "config": str(config), "weights": str(path)}
    with pytest.raises(ConfigError, match=words):
        backbones.load(parse(Backbone, {"name": "x", **entry}, "here"))


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"architecture": "ViT-B-16-SigLIP", "weights": "a.pt"}, "add `like: <open_clip tag>`"),
        ({"architecture": "hf-hub:", "pretrained": "x"}, "hf-hub: what"),
        ({"architecture": "hf-hub:a/b", "pretrained": "x"}, "leave out `pretrained`"),
        ({"architecture": "ViT-B-32", "pretrained": "openai", "like": "openai"}, "the tag says it"),
        (
            {"architecture": "ViT-B-32", "weights": "a", "like": "openai", "revision": "b"},
            "of the hub",
        ),
        ({"architecture": "ViT-B-32", "weights": "a", "preprocess": {"mean": [0, 0, 0]}}, "std"),
    ],
)
def test_entries_that_say_too_little_or_too_much(entry, words):
    with pytest.raises(ConfigError, match=words):
        parse(Backbone, {"name": "x", **entry}, "here")


def test_a_local_directory_is_known_by_its_content(made, tmp_path):
    config, model = made("siglip")
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        entry = directory(model, "siglip", folder, config)
    specs = [Backbone(name="x", architecture=f"local-dir:{folder}") for folder in folders]
    before = backbones.origin(specs[0])
    assert backbones.origin(specs[1]) == before
    file = folders[0] / "tokenizer.json"
    file.write_text(file.read_text() + "\n")
    assert backbones.origin(specs[0]) != before
    assert entry["architecture"] == specs[1].architecture
