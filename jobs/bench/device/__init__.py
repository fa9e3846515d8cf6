"""Measurements of one device: `jobs/benchmark.py --device`.

benchmark   all measurements, in the time that there is
training    steps of the trainer, by phase and batch
predict     batches of photos, by stage
timing      timers for work that a device does while the host goes on
report      a table, what bounds each measurement, JSON
"""
