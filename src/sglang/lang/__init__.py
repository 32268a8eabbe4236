"""The language. Public: api (what programs are written with), choices, sampling, chat_template, errors, and the grammar pieces and
tools of typed. A program (program) is run on states (run) by a backend (backend); record keeps what happened.
pyproject.toml has the layers."""
