"""Files of the Hugging Face hub: what they are now, without fetching them, and fetching them once per node.

A tag or a repository's name is not content: what stands behind it can change. `find` therefore tells a file by what
the hub says of it (its sha256, for a file of weights), and by the commit that holds it. Where the hub cannot be
reached, or `HF_HUB_OFFLINE` is set, the local cache answers (it holds the same two facts), and then what this machine
was last told. A run thus recognises offline what it did online, and never takes changed weights for the old ones.
"""

import functools
import json
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

from clipray.backbones.digests import cache, digest, remember
from clipray.errors import ConfigError

TIMEOUT = 10  # seconds for the hub to say what a file is
_down: list[str] = []  # why the hub cannot be reached; asked once per process


@dataclass(frozen=True)
class HubFile:
    """One version of a file of the hub.

    Attributes:
        repo: `<org>/<name>`.
        file: its name in the repository.
        commit: a commit of the repository that holds it.
        content: the sha256 of a large file, git's hash of a small one: the same for the same bytes.
        size: bytes; 0 where it is not known.
    """

    repo: str
    file: str
    commit: str
    content: str
    size: int


@functools.lru_cache(maxsize=1024)
def find(repo: str, names: tuple[str, ...], revision: str = "") -> HubFile:
    """Find the first of some files that a repository has; the answer holds for the life of the process.

    Args:
        repo: `<org>/<name>`.
        names: the file's names, in the order of preference.
        revision: a branch, tag or commit; empty: the newest.

    Raises:
        ConfigError: the repository, revision or files do not exist or are forbidden, or nothing is known of them.
    """
    hub_file = _ask(repo, names, revision) or _cached(repo, names, revision)
    hub_file = hub_file or _remembered(repo, names, revision)
    if hub_file is None:
        raise ConfigError(
            f"{repo} on the Hugging Face hub: {' or '.join(names)} is not in the local cache and the hub cannot be "
            f"reached ({'; '.join(_down) or 'unknown reason'}). Fetch it where there is a network (`python -m "
            "jobs.backbones`), point HF_HOME to a cache that has it, or unset HF_HUB_OFFLINE"
        )
    for known in (revision, hub_file.commit):
        remember(_memory(repo, names, known), json.dumps(asdict(hub_file)))
    return hub_file


def fetch(hub_file: HubFile, revision: str = "") -> Path:
    """Return a file of the hub as a local file; processes of a node that want the same one wait for the first.

    Args:
        hub_file: what is wanted.
        revision: as it was given to `find`. The cache then notes what the revision means, for later runs offline.

    Raises:
        ConfigError: it is not in the cache and cannot be fetched.
    """
    from filelock import FileLock
    from huggingface_hub import hf_hub_download

    lock = cache() / "locks" / sha256(f"{hub_file.repo}/{hub_file.file}".encode()).hexdigest()[:32]
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock):
            if (kept := _held(hub_file)) is not None:
                return kept
            path = hf_hub_download(hub_file.repo, hub_file.file, revision=revision or None)
            if hub_file.commit in Path(path).parts:
                return Path(path)
            return Path(hf_hub_download(hub_file.repo, hub_file.file, revision=hub_file.commit))
    except Exception as error:  # the client raises those of several libraries
        raise ConfigError(
            f"{hub_file.repo}/{hub_file.file} cannot be fetched from the Hugging Face hub: "
            f"{first_line(error)}"
        ) from error


def first_line(error: BaseException) -> str:
    """Return an error's first line, shortened."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]


def _ask(repo: str, names: tuple[str, ...], revision: str) -> HubFile | None:
    """What the hub says; None where it cannot be reached."""
    from huggingface_hub import errors, get_hf_file_metadata, get_token, hf_hub_url

    if _down:
        return None
    where = f"{repo} on the Hugging Face hub"
    for name in names:
        try:
            url = hf_hub_url(repo, name, revision=revision or None)
            told = get_hf_file_metadata(url, token=get_token(), timeout=TIMEOUT)
        except errors.EntryNotFoundError:
            continue
        except errors.HFValidationError as error:
            raise ConfigError(f"{where}: {first_line(error)}") from error
        except errors.RevisionNotFoundError as error:
            raise ConfigError(f"{where}: there is no revision {revision!r}") from error
        except (errors.RepositoryNotFoundError, errors.DisabledRepoError) as error:
            raise ConfigError(
                f"{where} does not exist, or HF_TOKEN is not set or may not read it (gated "
                "repositories want their terms accepted on the hub's page first)"
            ) from error
        except (
            Exception
        ) as error:  # no network: of the HTTP client, of sockets, of the offline mode
            _down.append(first_line(error))
            return None
        if told.etag and told.commit_hash:
            return HubFile(repo, name, told.commit_hash, told.etag, told.size or 0)
    raise ConfigError(f"{where} has none of {', '.join(names)}")


def _cached(repo: str, names: tuple[str, ...], revision: str) -> HubFile | None:
    """What the local cache holds of a revision."""
    from huggingface_hub import try_to_load_from_cache

    for name in names:
        kept = try_to_load_from_cache(repo, name, revision=revision or None)
        if isinstance(kept, str):
            path = Path(kept)
            commit = path.parts[-1 - len(Path(name).parts)]
            blob = path.resolve()
            # where links cannot be made, the cache holds a copy in place of a link to a blob
            content = blob.name if blob.parent.name == "blobs" else digest(path)
            return HubFile(repo, name, commit, content, blob.stat().st_size)
    return None


def _held(hub_file: HubFile) -> Path | None:
    """The file in the local cache, as any commit that has the same content holds it."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"models--{hub_file.repo.replace('/', '--')}"
    for path in sorted(folder.glob(f"snapshots/*/{hub_file.file}")):
        blob = path.resolve()
        if blob.name == hub_file.content and blob.is_file():
            return path
    return None


def _remembered(repo: str, names: tuple[str, ...], revision: str) -> HubFile | None:
    try:
        return HubFile(**json.loads(_memory(repo, names, revision).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _memory(repo: str, names: tuple[str, ...], revision: str) -> Path:
    key = sha256(json.dumps([repo, names, revision]).encode()).hexdigest()[:32]
    return cache() / "hub" / key
