"""Send to MLflow what campaigns of a workspace have recorded and what has not arrived there.

    python -m jobs.track workspace/demo                    all that the workspace has recorded
    python -m jobs.track workspace/demo demo               one campaign
    python -m jobs.track workspace/demo demo --set tracking.uri=http://host:5000
    python -m jobs.track s3://bucket/ws --set tracking.uri=sqlite:///all.db       into one database

Each record goes to the server and experiment that its config named, unless --set names another. Nothing
is computed, and what is there already is not sent twice. Exit code 4 where something could not be sent.
The last line on stdout is one JSON object: the runs of each record.
"""

from clipray.errors import TrackingError
from jobs import arguments, finish, run, say

WORKSPACE = "a workspace: a folder or an s3:// URI"
NAME = {"name?": "one campaign; where none is named, all that the workspace has recorded"}


def main() -> int:
    """Find the records, send each, tell where they are."""
    given = arguments(__doc__, config=WORKSPACE, first="WORKSPACE", positions=NAME)
    from clipray.steps import tracked

    sent = []
    for made in tracked.send_recorded(given.config, given.name, given.set):
        say(f"{made['name']}: {made.get('error') or made['open']}")
        sent.append(made)
    finish({"records": sent})
    return TrackingError.exit_code if any("error" in made for made in sent) else 0


if __name__ == "__main__":
    run(main)
