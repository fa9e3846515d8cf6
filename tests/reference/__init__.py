"""Slow, obvious references that tests compare the code with, and golden values. They import nothing of the project."""
