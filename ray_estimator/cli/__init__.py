"""The command line: `ray-estimator`, or `python -m ray_estimator`.

    app.py             the commands, their options and exit codes
    diagnosis.py       doctor: this machine, a cluster, a store
    scanning.py        doctor PATH: what will break, by estimator_names.py and tensorflow_names.py
        sources.py names.py findings.py
    inspection.py      inspect MODEL_DIR
    showing.py         tables

`import ray_estimator` does not import it.
"""


def main() -> None:
    """Runs the command line, and ends the process with its exit code."""
    from ray_estimator.cli.app import app

    app(prog_name="ray-estimator")
