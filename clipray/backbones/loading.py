"""Models of open_clip with the weights of an entry, and the checkpoints of our own training.

open_clip builds the model and its preprocessing; the weights are then loaded from a file that is known to be there, so
that no failure leaves a model of random numbers. Nothing is unpickled but tensors.
"""

import contextlib
import json
import logging
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipray import images
from clipray.backbones.doors import FOLDER, HUB, Source, fetch, local_path, model_config
from clipray.backbones.hub import first_line
from clipray.config import Backbone
from clipray.errors import ConfigError

if TYPE_CHECKING:
    import torch

ROWS = "token_embedding.rows"
TABLE = "token_embedding.weight"
OPENAI = ("input_resolution", "context_length", "vocab_size")  # buffers of OpenAI's archives only
SIMPLE = 49408  # tokens of CLIP's own tokenizer


def create(
    spec: Backbone, source: Source, precision: str = "fp32", device: str = "cpu"
) -> "torch.nn.Module":
    """Build the model of an entry, with its weights, in evaluation mode.

    Scale and bias stay in fp32 in every precision: they multiply all logits.

    Raises:
        ConfigError: unknown architecture, or weights that are damaged, unsafe or of another architecture.
    """
    import open_clip
    import torch

    _register(spec)
    named = not spec.architecture.startswith((HUB, FOLDER))
    if named and open_clip.get_model_config(spec.architecture.replace("/", "-")) is None:
        raise ConfigError(
            f"backbone {spec.name}: open_clip has no architecture {spec.architecture!r}"
        )
    try:
        state = _state(source.weights)
        gelu = source.quick_gelu or (state is not None and OPENAI[0] in state)
        _check_activation(spec, gelu)
        with _unalarmed():
            model = open_clip.create_model(
                source.model,
                load_weights=False,
                precision=precision,
                device=device,
                pretrained_image=False,
                pretrained_text=False,
                force_quick_gelu=gelu,
                force_preprocess_cfg=source.pixels,
            )
        _keep_exact(model)
        _even_out(model)
        _load(model, source.weights, state)
    except pickle.UnpicklingError as error:
        raise ConfigError(
            f"backbone {spec.name}: {source.file} is damaged, or holds pickled Python objects, which could run code "
            "when loaded. Save its state dict: torch.save(model.state_dict(), path), or safetensors"
        ) from error
    except ConfigError:
        raise
    except Exception as error:  # of torch, safetensors, zipfile, timm, transformers
        raise ConfigError(
            f"backbone {spec.name}: {source.file} does not load as {spec.architecture}: {first_line(error)}"
            f"{_mismatch(error)}"
        ) from error
    _check_preprocessing(spec, model)
    if device.startswith("cuda"):
        # crops come so; a CPU's convolutions arrange weights anyway
        model.visual.to(memory_format=torch.channels_last)
        # fp32 is to be fp32: by default convolutions keep 10 bits of it, as many as fp16 has
        torch.backends.cudnn.allow_tf32 = False
    return model.eval().requires_grad_(False)


@contextlib.contextmanager
def _unalarmed() -> Iterator[None]:
    """open_clip warns of random weights; here they are loaded right after."""

    def keep(record: logging.LogRecord) -> bool:
        return "initialized randomly" not in record.getMessage()

    logging.getLogger().addFilter(keep)
    try:
        yield
    finally:
        logging.getLogger().removeFilter(keep)


def _register(spec: Backbone) -> None:
    import open_clip

    if spec.config:
        path = fetch(spec.config)
        if path.stem != spec.architecture:
            raise ConfigError(
                f"backbone {spec.name}: the architecture of {spec.config} is named {path.stem!r}, not "
                f"{spec.architecture!r}"
            )
        open_clip.add_model_config(path)


def _check_activation(spec: Backbone, gelu: bool) -> None:
    """`ConfigError` where the weights want GELU and the architecture is QuickGELU's; the other way it is forced."""
    if spec.like and not gelu and model_config(spec).get("quick_gelu"):
        raise ConfigError(
            f"backbone {spec.name}: {spec.architecture} has QuickGELU, and {spec.like} was trained with GELU; take "
            f"the architecture {spec.architecture.removesuffix('-quickgelu')}, or another `like`"
        )


def _keep_exact(model: "torch.nn.Module") -> None:
    for name in ("logit_scale", "logit_bias"):
        value = getattr(model, name, None)
        if value is not None:
            value.data = value.data.float()


def _even_out(model: "torch.nn.Module") -> None:
    """Cast CoCa's queries and class token as their layers are; open_clip leaves them in fp32, and then fails."""
    from open_clip.transformer import AttentionalPooler, TextTransformer

    for module in model.modules():
        if isinstance(module, AttentionalPooler):
            module.query.data = module.query.data.to(module.attn.out_proj.weight.dtype)
        if isinstance(module, TextTransformer) and module.cls_emb is not None:
            dtype = module.transformer.get_cast_dtype()
            module.cls_emb.data = module.cls_emb.data.to(dtype)


def _state(path: Path) -> dict[str, Any] | None:
    """The tensors of a TorchScript archive or of a sparse checkpoint of ours; None for what open_clip reads itself."""
    if path.suffix == ".safetensors":
        return _read(path) if _is_sparse(path) else None
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        if not any(name.endswith("/constants.pkl") for name in archive.namelist()):
            return None
    import torch

    return dict(torch.jit.load(path, map_location="cpu").state_dict())


def _load(model: "torch.nn.Module", path: Path, state: dict[str, Any] | None) -> None:
    """Put a checkpoint's weights into a model, all of them, as open_clip does."""
    from open_clip.factory import load_checkpoint
    from open_clip.model import (
        convert_to_custom_text_state_dict,
        resize_pos_embed,
        resize_text_pos_embed,
    )

    if state is None:
        load_checkpoint(model, str(path), strict=True, weights_only=True)
        return
    state = {key: value for key, value in state.items() if key not in OPENAI}
    if ROWS in state:
        rows = state.pop(ROWS).long()
        seen = state[TABLE]
        table = seen.new_zeros(model.state_dict()[TABLE].shape)
        state[TABLE] = table.index_copy(0, rows, seen)
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    # an archive also holds the buffers that the model makes anew: masks, rotations
    made = dict(model.named_buffers()).keys() - model.state_dict().keys()
    state = {key: value for key, value in state.items() if key not in made}
    resize_pos_embed(state, model)
    resize_text_pos_embed(state, model)
    model.load_state_dict(state, strict=True)


def _mismatch(error: Exception) -> str:
    """The first lines of what does not fit, out of the hundreds that torch lists."""
    lines = [line.strip() for line in str(error).splitlines()[1:] if line.strip()]
    return "".join(f"\n  {line[:200]}" for line in lines[:4])


def _check_preprocessing(spec: Backbone, model: "torch.nn.Module") -> None:
    told = model.visual.preprocess_cfg
    try:
        group = images.preprocess(told)
    except ValueError as error:
        raise ConfigError(f"backbone {spec.name}: {error}") from error
    wanted = spec.preprocess.size if spec.preprocess else None
    if wanted is not None and images.preprocess({**told, "size": wanted}).size != group.size:
        raise ConfigError(
            f"backbone {spec.name}: preprocess.size is {wanted}, but {spec.architecture} takes {group.size}"
        )


def tokenizer_of(spec: Backbone, source: Source | None):
    """Build the tokenizer of an entry, as `open_clip.get_tokenizer` does.

    Raises:
        ConfigError: its files cannot be fetched, or it counts other tokens than the text tower has.
    """
    import open_clip

    _register(spec)
    text = model_config(spec).get("text_cfg", {})
    try:
        if spec.architecture.startswith(HUB) and text.get("hf_tokenizer_name"):
            made = open_clip.tokenizer.HFTokenizer(
                text["hf_tokenizer_name"],
                context_length=text.get(
                    "context_length", open_clip.tokenizer.DEFAULT_CONTEXT_LENGTH
                ),
                tokenizer_mode=text.get("tokenizer_mode"),
                **text.get("tokenizer_kwargs", {}),
            )
        else:
            made = open_clip.get_tokenizer(source.model if source else spec.architecture)
    except Exception as error:  # of transformers, tokenizers, the hub's client, fsspec
        raise ConfigError(
            f"backbone {spec.name}: its tokenizer {text.get('hf_tokenizer_name') or ''} cannot be loaded "
            f"({first_line(error)}). It comes from the Hugging Face hub, or lies in the folder of `local-dir:`"
        ) from error
    rows = text.get("vocab_size", SIMPLE)
    simple = isinstance(made, open_clip.SimpleTokenizer)
    tokens = made.vocab_size if simple else len(made.tokenizer)
    if not text.get("hf_model_name") and (tokens > rows or (simple and tokens != rows)):
        raise ConfigError(
            f"backbone {spec.name}: the text tower has {rows} tokens, the tokenizer {type(made).__name__} {tokens}; "
            "name the right one by `hf_tokenizer_name` in the model config's `text_cfg`"
        )
    return made


def facts(encoder: Any) -> dict[str, Any]:
    """Return what a card says of a loaded backbone's files, activations and tokenizer."""
    source = encoder.source
    made = encoder.tokenizer
    told: dict[str, Any] = {}
    if source is not None:
        told = {
            "file": source.file,
            "revision": source.revision,
            "file_mb": source.weights.stat().st_size / 1e6,
        }
    visual = encoder.model.visual
    inside = {id(module) for module in visual.modules()}
    others = [module for module in encoder.model.modules() if id(module) not in inside]
    told["activation"] = {
        "image": _activations(list(visual.modules())),
        "text": _activations(others),
    }
    name = getattr(getattr(made, "tokenizer", None), "name_or_path", "")
    told["tokenizer"] = f"{type(made).__name__} {name}".strip()
    return told


def _activations(modules: list) -> list[str]:
    """The names of the activations among some modules, without those that gate or do nothing."""
    known = ("QuickGELU", "GELU", "GELUTanh", "ReLU", "SiLU", "SwiGLU")
    names = {type(module).__name__ for module in modules}
    return [name for name in known if name in names]


def untrained(config: str) -> "torch.nn.Module":
    """A model of an open_clip model config of ours, to be trained; its token table starts at zero.

    A row that training never sees therefore stays zero, says nothing, and is not stored (`save`).
    """
    import open_clip

    path = local_path(config)
    open_clip.add_model_config(path)
    model = open_clip.create_model(path.stem, pretrained_image=False, pretrained_text=False)
    model.token_embedding.weight.data.zero_()
    return model


def tokenizer(config: str):
    """The tokenizer of an open_clip model config of ours."""
    import open_clip

    open_clip.add_model_config(local_path(config))
    return open_clip.get_tokenizer(local_path(config).stem)


def image_size(config: str) -> int:
    """Side of the square input of an open_clip model config of ours, in pixels; needs no open_clip."""
    return json.loads(local_path(config).read_text())["vision_cfg"]["image_size"]


def _is_sparse(path: Path) -> bool:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return ROWS in file.keys()  # noqa: SIM118 - safe_open is no mapping


def _read(path: Path) -> dict:
    from safetensors.torch import load_file

    return load_file(path)


def save(model: "torch.nn.Module", path: Path) -> None:
    """Write a model as fp16 safetensors; all-zero rows of the token embedding are left out."""
    import torch
    from safetensors.torch import save_file

    state = {
        key: value.detach()
        .cpu()
        .to(torch.float16 if value.is_floating_point() else value.dtype)
        .contiguous()
        for key, value in model.state_dict().items()
    }
    rows = state[TABLE].any(dim=1).nonzero().squeeze(1)
    state[ROWS], state[TABLE] = rows.to(torch.int32), state[TABLE][rows].contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path, metadata={"format": "pt"})
