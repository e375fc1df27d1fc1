"""From input_fn or the rows of a Ray Dataset to tensors in the graph."""
