"""Files on any store, by URL, and what is built from them alone: staging, SavedModels, preflight."""
