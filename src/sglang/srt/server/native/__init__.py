"""The native API: /generate, /score_choices, /encode and what operators need."""
