"""What a person sees of a run: the progress display and the summary lines."""
