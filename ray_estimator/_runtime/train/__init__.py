"""Training groups on Ray Train."""
