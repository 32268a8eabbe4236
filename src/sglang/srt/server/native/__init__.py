"""The native API: /generate, /score_choices, /encode and operators' endpoints."""
