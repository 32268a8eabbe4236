"""Programs as callables: single runs, batches, and runs without a model."""
