"""Portrait matting as a library: storage, data, networks, inference and results.

Nothing here imports Ray or `jobs`, parses options (except `matting.__main__`) or starts processes. The rooms import
each other in one direction: storage <- data <- nn <- inference <- results.
"""
