"""Checks of pairs that can be decoded and may still be wrong: of a matte, of its photo beside it, of a whole dataset.

Nothing here reads files: the checks take arrays, and their thresholds come from real pairs.
"""
