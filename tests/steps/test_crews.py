"""An actor of several members: each sees each shard, and is made when the first one reaches it."""

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pyarrow as pa

from clipray.steps.crews import Crew


class Adding:
    made = 0

    def __init__(self, column, number):
        type(self).made += 1
        self.column, self.number = column, number

    def __call__(self, table):
        values = [value + self.number for value in table[self.column].to_pylist()]
        return table.set_column(
            table.column_names.index(self.column), self.column, pa.array(values)
        )


def test_members_see_a_shard_in_turn_and_are_made_once():
    Adding.made = 0
    crew = Crew(
        [partial(Adding, "a", 1), partial(Adding, "b", 10), partial(Adding, "a", 5)], ["b"], 0
    )
    assert Adding.made == 1  # or the pools of a chain would load one after another
    for _ in range(2):
        assert crew(pa.table({"a": [1], "b": [2]})).to_pydict() == {"a": [7]}
    assert Adding.made == 3


def test_threads_share_members_that_are_made_once():
    """As on a GPU, where one shard is computed while another one is written."""
    Adding.made = 0

    class Slow(Adding):
        def __init__(self, *given):
            time.sleep(0.1)
            super().__init__(*given)

    Slow.made = 0
    crew = Crew([partial(Slow, "a", 1), partial(Slow, "a", 10)], [], 0)
    with ThreadPoolExecutor(4) as threads:
        done = list(threads.map(lambda value: crew(pa.table({"a": [value]})), range(20)))
    assert [table["a"].to_pylist() for table in done] == [[value + 11] for value in range(20)]
    assert Slow.made == 2
