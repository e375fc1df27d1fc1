"""What is published in a model_dir: checkpoints, their manifests, who may write, who reads."""
