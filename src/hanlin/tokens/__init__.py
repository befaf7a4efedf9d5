"""Text <-> ids, as bricks that families build their tokenizers from. Knows no torch."""
