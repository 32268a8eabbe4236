"""Registration of the original's tests with its CI."""
