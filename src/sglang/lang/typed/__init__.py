"""Generated text as values: output types, grammars, tools, reasoning."""
