"""What several tests share: models, recorders, servers, oracles."""
