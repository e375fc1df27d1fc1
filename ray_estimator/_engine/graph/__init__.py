"""What a graph does: its operations, Keras state, the end of input, metrics that can be merged."""
