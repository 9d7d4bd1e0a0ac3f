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
from clipray.steps import tracked
from jobs import arguments, finish, run, say


def main() -> int:
    """Find the records, send each, tell where they are."""
    given = arguments(__doc__, config=None, positions=("workspace", "name?"))
    sent = []
    for made in tracked.send_recorded(given.workspace, given.name, given.set):
        say(f"{made['name']}: {made.get('error') or made['open']}")
        sent.append(made)
    finish({"records": sent})
    return TrackingError.exit_code if any("error" in made for made in sent) else 0


if __name__ == "__main__":
    run(main)
