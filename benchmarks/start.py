"""Where the time of a small campaign goes, from the command to the leaderboard.

    python benchmarks/start.py [CONFIG]        by default configs/demo.yaml

Runs the campaign as a command in an empty workspace, and takes the time of what it says and of the first file of
embeddings. The floor is measured in the same run: one process that imports torch and open_clip, which every run has to
wait for once. Prints seconds since the command for each stage, and how many such floors they are.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

IMPORTS = "import torch, open_clip, clipray.backbones"
STAGES = {  # by what the last line of a stage is like
    r"index: .* in ": "indexed and planned",
    r"class names: .* in ": "class names embedded",
    r"images: .* in ": "all images embedded",
    r"evaluation: .* in ": "all evaluated",
    r"writing the report": "leaderboard",
    r"report  ": "report and records",
}
LOOK = 0.1  # seconds between looks for the first file


def floor() -> float:
    """Measure the seconds of a process that does nothing but import."""
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", IMPORTS], check=True)
    return time.monotonic() - start


def first_file(folder: Path) -> bool:
    """Tell whether a shard of embeddings is there."""
    return next(folder.glob("embeddings/**/*.parquet"), None) is not None


def stages(config: str, workspace: Path) -> Iterator[tuple[str, float]]:
    """Run the campaign; yield the name of each stage and the second of its end."""
    told = workspace / "stderr"
    command = [sys.executable, "-m", "jobs.run", config, "--set", f"workspace={workspace}"]
    start, left, embedded = time.monotonic(), dict(STAGES), False
    with told.open("wb") as sink:
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=sink)
        while running.poll() is None:
            time.sleep(LOOK)
            now = time.monotonic() - start
            if not embedded and first_file(workspace):
                embedded = True
                yield "first embeddings on disk", now
            for line in told.read_text(errors="replace").splitlines():
                said = [words for words in left if re.match(words, line)]
                for words in said:
                    yield left.pop(words), now
    if running.returncode:
        raise SystemExit(told.read_text()[-2000:])
    yield "the command has ended", time.monotonic() - start


def main() -> None:
    """Print the breakdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", nargs="?", default="configs/demo.yaml")
    config = parser.parse_args().config
    floor()  # its files are in the cache of the disk from here on
    imports = floor()
    print(f"{'one process imports torch and open_clip':42}{imports:8.1f} s")
    with tempfile.TemporaryDirectory() as folder:
        for name, seconds in stages(config, Path(folder)):
            print(f"{name:42}{seconds:8.1f} s{seconds / imports:8.1f} floors", flush=True)


if __name__ == "__main__":
    main()
