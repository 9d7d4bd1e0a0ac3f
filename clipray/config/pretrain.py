"""What `jobs.pretrain` takes."""

from typing import Literal

from pydantic import Field

from clipray.config import Name, Strict, Tracking


class Pretrain(Strict):
    """What `jobs.pretrain` takes."""

    name: Name
    workspace: str
    architecture: str  # an open_clip model config (JSON): absolute, or relative to configs/
    corpus: str  # Parquet files or a folder of them
    image: str = "image"  # column of encoded bytes, or of structs with a field `bytes`
    caption: str = "caption"
    data: str = ""  # what the corpus is and under what terms, for the model card
    output: str  # where the weights go: absolute, or relative to configs/
    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=2)  # images a step, over all workers
    lr: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    warmup_steps: int = Field(ge=1)
    clip_norm: float = Field(1.0, gt=0)
    max_scale: float = Field(100.0, gt=1)
    precision: Literal["fp32", "bf16"]  # fp16 would want its loss scaled
    shift: int = Field(ge=0)  # augmentation: pixels moved at most
    jitter: float = Field(ge=0, lt=1)  # augmentation: contrast and brightness
    held_out: float = Field(0.02, gt=0, lt=1)  # fraction of the images, by hash
    seed: int = 0
    shuffle_buffer: int = Field(8192, ge=1)
    cache: bool = True  # decode once and keep the crops in the object store
    workers: int = Field(1, ge=1)
    use_gpu: bool = False
    cpus_per_worker: float = Field(1.0, gt=0)
    threads: int = Field(1, ge=1)
    max_failures: int = Field(3, ge=0)
    tracking: Tracking = Tracking()
