"""Progress display and summary lines."""
