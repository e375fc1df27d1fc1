"""What travels between driver and workers: jobs, user code, results, errors."""
