"""The parts of jobs/evaluate.py: predictions to score, from a checkpoint or from files.

Metrics belong in matting.nn.metrics and pages in matting.results. Nothing here knows the job's options.
"""
