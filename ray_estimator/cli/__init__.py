"""The command line: `ray-estimator`, or `python -m ray_estimator`.

    app.py             the commands, their options and exit codes
    diagnosis.py       doctor: checks of this machine, a cluster, a store
    scanning.py        doctor PATH: scan of sources, with estimator_names.py and tensorflow_names.py
        sources.py names.py findings.py
    inspection.py      inspect MODEL_DIR
    showing.py         output for terminals

`import ray_estimator` does not import it.
"""


def main() -> None:
    """Run the command line and exit with its exit code."""
    from ray_estimator.cli.app import app

    app(prog_name="ray-estimator")
