"""Parts of `jobs/train.py`: options, data streams, the training worker, the run folder and what is made from it.

Code that only training on Ray needs belongs here. The training step itself is in `matting.nn`, and no other program
imports this package.
"""
