"""Images, pairs and photos: how they are found in storage, decoded, packed and drawn.

Modules here work on files, tables and pixels. They must not import networks, training or Ray.
"""
