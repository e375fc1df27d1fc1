"""Converts blocks of a Ray Dataset to the arrays of a rank, without importing Ray or TensorFlow."""
