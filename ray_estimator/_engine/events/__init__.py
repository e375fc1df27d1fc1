"""Event files: read, written, copied to the store."""
