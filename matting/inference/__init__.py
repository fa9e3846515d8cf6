"""Prediction in one process: a trained network, prepared for speed, turns photos of any size into alphas and cutouts.

Arrays go in and come out. Modules here read no photos, write no outputs, and know neither Ray nor the ledger; the only
files that they read are those of a checkpoint.
"""
