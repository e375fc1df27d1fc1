"""Files by URL on any store, and what builds on them: locks, staging, SavedModels, preflight."""
