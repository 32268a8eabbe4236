"""Constraints on the output.

registry.py             the engines by name: one line each
masks.py                masks of all constrained rows, filled on a side thread
compiler.py             texts -> grammars on side threads, with a cache and limits
lanes.py                whose text is next, and a lane for those that take long
trial.py                a text compiles in a child first, and is stepped through
aside.py                long calls of the engines, at the lowest priority
llguidance_backend.py   the default engine
xgrammar_backend.py     the other one, an extra
encoder.py              forced text to canonical tokens
habits.py               what outputs of one grammar were like
quotes.py               what they copied from their prompts
structural_tags.py      structural tags: their form
json_schema.py          schemas: built anew out of checked parts; the following modules are its steps
schema_keywords.py      the keywords of all drafts: what holds schemas, what constrains
schema_shapes.py        what may stand at a keyword
schema_refs.py          references: where they lead
schema_rewrites.py      keywords said with other keywords
schema_reductions.py    what type libraries write, said with other keywords
schema_loosening.py     what is left to a check of the whole answer
json_layout.py          white space between the parts of JSON
finite_patterns.py      patterns of a few words as their list
schema_numbers.py       numbers in schemas: those that engines hold exactly
schema_exclusive.py     oneOf with anyOf, by branches that exclude each other
schema_closing.py       objects have the properties that are listed
schema_bounds.py        formats as patterns, bounds on digits where a schema sets none
schema_wide.py          very many optional properties, by patterns of names
schema_formats.py       the patterns of formats
lark_schemas.py         schemas inside Lark grammars
regex_syntax.py         Python's regular expressions in llguidance's dialect
regex_ebnf.py           Python's regular expressions as grammars
base.py                 what an engine is
"""
