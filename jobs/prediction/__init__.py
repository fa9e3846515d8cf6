"""The parts of jobs/predict.py: number format, Ray tasks, page and summary.

Handling a block of photos without Ray belongs in matting.results, and options and the order of steps in
jobs/predict.py.
"""
