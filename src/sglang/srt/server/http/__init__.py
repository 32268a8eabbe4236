"""HTTP: connections and their limits, authentication, bodies, and responses."""
