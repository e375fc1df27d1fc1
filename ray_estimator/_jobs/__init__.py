"""What is sent between the driver and workers: jobs, user code, results, errors."""
