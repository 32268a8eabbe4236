"""HTTP: connections and their limits, who asks, what a body may be, and the last step to the wire."""
