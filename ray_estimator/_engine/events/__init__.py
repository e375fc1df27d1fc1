"""Read event files, write them, and publish them to the store."""
