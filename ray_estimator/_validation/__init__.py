"""Checks of arguments, on the driver."""
