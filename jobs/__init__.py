"""Programs on Ray: train, predict, pack, evaluate, export and benchmark.

Each program parses options, assembles a pipeline from the library `matting`, runs it, and reports. What two programs
share belongs in `common`, the parts of one program in its own folder, and whatever works without Ray in `matting`,
which never imports this package.
"""
