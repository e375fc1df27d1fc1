"""Variables to and from checkpoints."""
