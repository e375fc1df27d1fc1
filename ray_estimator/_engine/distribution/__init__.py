"""Training on several workers: the strategy, the order of collectives, sparse gradients."""
