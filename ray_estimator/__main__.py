"""`python -m ray_estimator` is the command `ray-estimator`."""

from ray_estimator.cli import main

if __name__ == "__main__":
    main()
