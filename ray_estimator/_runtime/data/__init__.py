"""Ray Datasets: schema, row ranges, streams, predictions."""
