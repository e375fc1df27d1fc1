"""The checkpoints of a model_dir: publication, manifests, retention, the lease of the writer."""
