"""How much clients may ask for: memory of bodies and parameters, sizes of JSON, places that clients share. JSON is read piece by piece."""
