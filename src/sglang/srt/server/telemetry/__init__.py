"""What is told of requests: metrics, the log of requests, traces."""
