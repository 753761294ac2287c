"""Generate, score, compare."""
