"""Programs as callables: single runs, batches, and tracing without a model."""
