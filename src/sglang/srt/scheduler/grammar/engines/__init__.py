"""The grammar engines, behind one interface (base.py): llguidance, the default, and xgrammar."""
