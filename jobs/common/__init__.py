"""What several jobs share: options, exit codes, a Ray cluster, the console, metrics.

No module here may know a particular job: what only training, prediction or the benchmark needs is in their packages.
"""
