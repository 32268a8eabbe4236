"""/openapi.json and /docs, generated from the routes: each handler declares its parameters and replies (operation.py)."""
