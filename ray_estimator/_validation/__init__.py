"""Validation of arguments on the driver."""
