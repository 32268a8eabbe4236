"""Limits of clients: memory of bodies and parameters, sizes of JSON, places that clients share. JSON is read piece by piece."""
