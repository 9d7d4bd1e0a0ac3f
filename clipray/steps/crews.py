"""Chains of actor pools; an actor holds one backbone, or several in turn where there are fewer cores than backbones.

Each process imports torch and open_clip anew, which takes seconds of a core. On a laptop two processes for all
backbones therefore give the first embedding far sooner than a process for each.
"""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from clipray.config import Compute, Pool
from clipray.images import Preprocess
from clipray.steps import cluster, nodes
from clipray.steps.crops import decode_memory
from clipray.steps.memory import Actors, Decoding, asked, taken
from clipray.steps.pools import cost_of, placed, share_processes

if TYPE_CHECKING:
    import ray.data

Stage = Callable[[pa.Table], pa.Table]


class Member(NamedTuple):
    """What an actor does with a shard.

    Attributes:
        make: makes the stage, in the actor. column: the crops that it reads; None: none.
    """

    make: Callable[[], Stage]
    column: str | None = None


class Crew:
    """One actor: its members see each shard in turn. The first is made at once, so that pools load side by side.

    Each of the others is made when the first shard reaches it: there are few cores, and the first ones soon work.
    Several threads may call the actor, each with a shard of its own.

    Args:
        makers: of the members. dropped: columns that no later pool reads. threads: that it computes with on CPUs; 0:
            as many as Ray gives it.
    """

    def __init__(self, makers: Sequence[Callable[[], Stage]], dropped: Sequence[str], threads: int):
        import torch

        if threads:
            torch.set_num_threads(threads)
        self.makers, self.dropped = makers, dropped
        self.members: list[Stage] = [makers[0]()]
        self.making = threading.Lock()

    def __call__(self, table: pa.Table) -> pa.Table:
        """Pass one shard through all members."""
        for number, make in enumerate(self.makers):
            with self.making:
                if number == len(self.members):
                    self.members.append(make())
            table = self.members[number](table)
        return table.drop_columns([name for name in self.dropped if name in table.column_names])


class Manned(NamedTuple):
    """A pool, what each of its actors does, and the bytes that it takes."""

    members: list[Member]
    pool: Pool
    memory: float


def manned(
    members: Mapping[str, Member],
    pools: Mapping[str, Pool],
    cards: Mapping[str, dict],
    batch_size: int,
) -> list[Manned]:
    """Put backbones together that share processes.

    Args:
        members: by backbone, in the order in which they see a shard. pools, cards: of each of them.
        batch_size: images that they compute at a time.
    """
    seconds = {name: cost_of(cards[name]).seconds for name in members}
    crews = []
    for names, pool in share_processes(list(members), pools, seconds):
        memory = taken([cards[name] for name in names], batch_size, pool.num_gpus > 0)
        crews.append(Manned([members[name] for name in names], pool, memory))
    return crews


def streamed(rows: Sequence[dict]) -> "ray.data.Dataset":
    """Make a Ray dataset of bundles of shards whose every shard passes the pools on its own.

    Ray Data puts rows that one call yields together in one block, up to 128 MB of them, which one actor takes as one.
    """
    import ray

    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    dataset.context.target_max_block_size = 1  # byte: a row is more, so it is a block
    return dataset


def decoding(compute: Compute, groups: Iterable[Preprocess]) -> dict[str, Any]:
    """Make the options of Ray Data's `map_batches` for decoding; no more memory is asked for than a node has.

    Args:
        groups: that images are cropped for.
    """
    return {
        "batch_size": 1,  # bundle of shards
        "batch_format": "pyarrow",
        "num_cpus": compute.decode_cpus,
        "memory": min(decode_memory(compute, groups), nodes.largest_memory(compute.decode_cpus)),
        "max_retries": compute.max_retries,
    }


def chained(
    dataset: "ray.data.Dataset", crews: Sequence[Manned], compute: Compute, decode_memory: int
) -> "ray.data.Dataset":
    """Send a Ray dataset of shards through pools, one after another; crops are dropped after the last that reads them.

    Ray Data has no tee, so the pools are a chain.

    Args:
        decode_memory: bytes that a decoding task asks for.
    """
    read = [{member.column for member in crew.members} - {None} for crew in crews]
    pools, memory = fitted(crews, compute, decode_memory)
    for position, crew in enumerate(crews):
        dropped = read[position].difference(*read[position + 1 :])
        pool = pools[position]
        dataset = dataset.map_batches(
            Crew,
            fn_constructor_args=([one.make for one in crew.members], sorted(dropped), pool.threads),
            batch_size=1,
            batch_format="pyarrow",
            **cluster.actors(pool, compute, memory[position]),
        )
    return dataset


def fitted(
    crews: Sequence[Manned], compute: Compute, decode_memory: int
) -> tuple[list[Pool], list[int]]:
    """Fit pools to the nodes of the cluster: what their actors ask for of CPUs and GPUs, and of bytes.

    Args:
        decode_memory: bytes that a decoding task asks for.
    """
    present = nodes.present()
    cpus = [node.cpus for node in present]
    pools = placed([crew.pool for crew in crews], cpus, compute.decode_cpus)
    actors = [Actors(pool, crew.memory) for pool, crew in zip(pools, crews, strict=True)]
    decoding = Decoding(compute.decode_cpus, decode_memory)
    return pools, asked(actors, [*present, *nodes.coming()], decoding)
