"""Turns an input_fn or the rows of a Ray Dataset into tensors of the graph."""
