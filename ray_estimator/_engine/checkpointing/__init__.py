"""Save variables to checkpoints, publish these, and restore from them."""
