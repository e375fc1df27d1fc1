"""Analysis and ordering of a graph's operations: variables, Keras state, the end of input, mergeable metrics."""
