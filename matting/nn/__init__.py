"""The network and its training: architecture, augmentation, losses, metrics, trainer and checkpoints, on torch tensors.

Code belongs here if training or scoring a network needs it. Decoding, datasets and prediction on whole photos do not;
nothing here imports Ray, and only ``checkpoint`` reads and writes files.
"""
