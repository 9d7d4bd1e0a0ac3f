"""A fused model behind HTTP, on Ray Serve: a front that decodes and fuses, and a deployment for each backbone.

    POST /predict    {"images": ["<base64>", …]}, or one image as the body with `Content-Type: image/…`
    GET  /healthz    200 while it answers

Requests that arrive together share a batch on each backbone. Every error is JSON with `error` and a status that says
whose it is; of several images the broken ones are rows with an `error`, of a single one it is status 422.
"""

import asyncio
import base64
import binascii
import json
from typing import Any, NamedTuple

import numpy as np
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse

from clipray import backbones, encoding
from clipray.artefacts import fused_model
from clipray.fusion import Fusion

WAIT = 0.01  # seconds that a request waits for others to share its batch
APP = "clipray"


class Limits(NamedTuple):
    """What a request may hold: bytes of its body, images, and pixels of an image."""

    bytes: int
    images: int
    pixels: int


class Refused(Exception):
    """A request that is not answered, with HTTP's status."""

    def __init__(self, status: int, words: str):
        super().__init__(words)
        self.status = status


def images_in(body: bytes, kind: str, limits: Limits) -> tuple[list[bytes], bool]:
    """The encoded images of a request's body, and whether it is a single one, sent as it is.

    Args:
        kind: the `Content-Type`.

    Raises:
        Refused: it is no JSON, names no images, or too many.
    """
    if kind.startswith("image/") or kind == "application/octet-stream":
        return [body], True
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(
            400, 'the body is no JSON: send {"images": ["<base64>", …]}, or an image as image/*'
        ) from None
    texts = value.get("images") if isinstance(value, dict) else None
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
        raise Refused(400, '"images" must be a list of base64 texts')
    if len(texts) > limits.images:
        raise Refused(413, f"{len(texts)} images, and {limits.images} are the most of a request")
    found = []
    for number, text in enumerate(texts):
        try:
            found.append(base64.b64decode(text, validate=True))
        except (binascii.Error, ValueError):
            raise Refused(400, f"images.{number} is not base64") from None
    return found, False


async def _body(request: Request, most: int) -> bytes:
    """The request's body; more than `most` bytes are refused before they are held."""
    parts, size = [], 0
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > most:
        raise Refused(413, f"{length} bytes, and {most} are the most of a request")
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise Refused(413, f"more than {most} bytes, the most of a request")
        parts.append(part)
    return b"".join(parts)


class Tower:
    """The deployment of one backbone.

    Args:
        model: the fused model's URI. number: the backbone's. batch: images at a time.
    """

    def __init__(self, model: str, number: int, device: str, batch: int):
        fusion = Fusion(fused_model.read(fused_model.fetched(model)))
        self.size, self.precision = fusion.group(number).size, fusion.about["precision"]
        self.encoder = backbones.load(fusion.specs[number], self.precision, device)
        self.embed.set_max_batch_size(batch)

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=WAIT)
    async def embed(self, crops: list[bytes]) -> list[tuple[np.ndarray, str | None]]:
        """An embedding of each crop, and why there is none."""
        return await asyncio.to_thread(self._embed, crops)

    def _embed(self, crops: list[bytes]) -> list[tuple[np.ndarray, str | None]]:
        crops_NHWC = np.frombuffer(b"".join(crops), np.uint8).reshape(-1, *self.size, 3)
        values_ND, errors = encoding.encode(self.encoder, crops_NHWC, len(crops))
        kept_ND, beyond = encoding.stored(values_ND, self.precision)
        every = zip(kept_ND, errors, beyond, strict=True)
        return [(kept_D, fails or large) for kept_D, fails, large in every]


class Front:
    """The deployment that answers requests.

    Args:
        model: the fused model's URI. limits: of a request. towers: the backbones' deployments, by number.
    """

    def __init__(self, model: str, limits: Limits, towers: dict[int, Any]):
        self.fusion = Fusion(fused_model.read(fused_model.fetched(model)))
        self.fusion.refuse_transductive()
        self.limits, self.towers = limits, towers

    async def __call__(self, request: Request) -> JSONResponse:
        """Answer a request."""
        try:
            return await self._answer(request)
        except Refused as refused:
            return JSONResponse({"error": str(refused)}, refused.status)
        except (
            Exception
        ) as error:  # a backbone that died, say: the client is told, and the next one served
            return JSONResponse({"error": encoding.words(error)}, 500)

    async def _answer(self, request: Request) -> JSONResponse:
        path, method = request.url.path.rstrip("/"), request.method
        known = {"/healthz": "GET", "/predict": "POST"}
        if path not in known:
            raise Refused(404, f"there is no {path or '/'}; there is: {', '.join(known)}")
        if method != known[path]:
            raise Refused(405, f"{path} takes {known[path]}, not {method}")
        if path == "/healthz":
            return JSONResponse({"status": "ok", "model": self.fusion.name})
        body = await _body(request, self.limits.bytes)
        data, single = images_in(body, request.headers.get("content-type", ""), self.limits)
        rows = await self.label(data)
        if single and rows[0]["error"]:
            raise Refused(422, rows[0]["error"])
        return JSONResponse({"predictions": rows})

    async def label(self, data: list[bytes]) -> list[dict[str, Any]]:
        """A row for each image, as `FusedModel.predict` gives them."""
        fusion = self.fusion
        groups = sorted({fusion.group(m) for m in self.towers})
        known = [None] * len(data)
        crops, errors = await asyncio.to_thread(
            encoding.cropped, data, known, groups, self.limits.pixels
        )
        good = [number for number, error in enumerate(errors) if error is None]
        embeddings: list[Any] = [None] * len(fusion.backbones)
        stage_N = np.full(len(good), len(fusion.stages) - 1)
        left = list(range(len(good)))  # places of images that still run
        for number, stage in enumerate(fusion.stages):
            for m in (m for m in stage.backbones if embeddings[m] is None):
                embeddings[m] = await self._tower(m, crops[fusion.group(m)], left, errors, good)
            left = [place for place in left if errors[good[place]] is None]
            if number == len(fusion.stages) - 1 or not left:
                break
            there = [None if e_ND is None else e_ND[left] for e_ND in embeddings]
            gone = fusion.leaves(number, there)
            stage_N[[place for place, goes in zip(left, gone, strict=True) if goes]] = number
            left = [place for place, goes in zip(left, gone, strict=True) if not goes]
        whole = [place for place, number in enumerate(good) if errors[number] is None]
        kept = [None if e_ND is None else e_ND[whole] for e_ND in embeddings]
        answers = iter(fusion.answers(kept, stage_N[whole]) if whole else ())
        return [{"error": error, **({} if error else next(answers))} for error in errors]

    async def _tower(
        self, number: int, crops: list[bytes], left: list[int], errors: list, good: list[int]
    ) -> np.ndarray:
        """A backbone's embeddings of all images, zeros for those that have left; its errors are put into `errors`."""
        found = await self._embedded(number, [crops[place] for place in left])
        values_ND = np.zeros((len(crops), self.fusion.cards[number]["dim"]), np.float32)
        for place, (vector_D, error) in zip(left, found, strict=True):
            errors[good[place]] = errors[good[place]] or error
            if error is None:
                values_ND[place] = vector_D
        return values_ND

    async def _embedded(self, number: int, crops: list[bytes]) -> list[tuple]:
        tower = self.towers[number]
        return await asyncio.gather(*(tower.embed.remote(crop) for crop in crops))


def start(
    model: str,
    fusion: Fusion,
    limits: Limits,
    host: str,
    port: int,
    device: str,
    cpus: float,
    batch: int,
) -> str:
    """Start the deployments on the Ray cluster that this process is in; the address that answers.

    Args:
        cpus: of the cluster, to be shared by the deployments.
    """
    share = max(0.01, round(cpus / (len(fusion.used) + 2), 2))
    gpus = 1 / len(fusion.used) if device == "cuda" else 0
    serve.start(http_options={"host": host, "port": port})
    towers = {}
    for m in fusion.used:
        options = {"num_cpus": share, "num_gpus": gpus}
        kind = serve.deployment(Tower).options(
            name=fusion.backbones[m], ray_actor_options=options, max_ongoing_requests=4 * batch
        )
        towers[m] = kind.bind(model, m, device, batch)
    front = serve.deployment(Front).options(
        ray_actor_options={"num_cpus": share}, max_ongoing_requests=100
    )
    serve.run(front.bind(model, limits, towers), name=APP, route_prefix="/")
    return f"http://{host}:{port}"


def stop() -> None:
    """Take the deployments down."""
    serve.shutdown()
