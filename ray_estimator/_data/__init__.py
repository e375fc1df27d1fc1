"""From blocks of a Ray Dataset to the arrays of a rank: columns, order, position. Knows neither Ray nor TensorFlow."""
