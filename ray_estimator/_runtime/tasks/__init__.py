"""Evaluate, predict and export as Ray tasks."""
