"""Generated text as values: types, grammars out of pieces, tools, reasoning."""
