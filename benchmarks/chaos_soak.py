"""Campaigns one after the other while something dies each minute: `chaos.py --soak MINUTES`."""

import itertools
import os
import signal
import time
from collections import Counter

from chaos_trials import Bench, Trial, compared


def soak(bench: Bench, minutes: float) -> None:
    """Run campaigns one after the other, each in a fresh workspace, while something dies each minute."""
    whole = bench.undisturbed("run")
    deadline = time.monotonic() + 60 * minutes
    deaths, ended = Counter(), Counter()
    sums = [0, 0, 0]
    kinds = itertools.cycle(("worker", "node", "driver"))
    strikes, kind = time.monotonic() + 60, next(kinds)
    while time.monotonic() < deadline:
        trial = bench.prepared()
        while not trial.codes or (trial.codes[-1] and len(trial.codes) < 20):
            trial.begin()
            while trial.process.poll() is None:
                time.sleep(0.2)
                if strikes < time.monotonic() < deadline:
                    killed = die(bench, trial, kind)
                    if not killed:  # no worker is at work yet: in a moment
                        continue
                    deaths[kind] += killed
                    print(f"{time.strftime('%H:%M:%S')} {kind}: {killed}", flush=True)
                    strikes, kind = strikes + 60, next(kinds)
            trial.end()
            ended[trial.codes[-1]] += 1
        sums = [a + b for a, b in zip(sums, compared("run", trial, whole), strict=True)]
        print(f"{time.strftime('%H:%M:%S')} campaign {trial.codes} {trial.said} {sums}", flush=True)
    print(f"deaths {dict(deaths)}; exit codes {dict(ended)}; lost, double, different rows {sums}")


def die(bench: Bench, trial: Trial, kind: str) -> int:
    """Kill something; how many processes or nodes."""
    if kind == "node":
        bench.nodes.remove()
        bench.nodes.add()
        return 1
    if kind == "driver":
        trial.kill()
        return 1
    # not Ray's agents, with which a whole node ends, perhaps the head
    titles = ("MapWorker", "MapBatches", "evaluate", "prepare")
    busy = [pid for title in titles for pid in trial.busy(title)()]
    for pid in busy[:2]:
        os.kill(pid, signal.SIGKILL)
    return len(busy[:2])
