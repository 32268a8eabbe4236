"""/openapi.json and /docs, made from the routes: each handler says what it takes and answers (operation.py)."""
