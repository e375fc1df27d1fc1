"""What the verbs of an Estimator share on the driver: from its contents to a job, and one training run."""
