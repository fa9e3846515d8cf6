"""Results of a run: output files, the ledger of a collection, pseudo-labels made from it, and HTML pages.

Modules here write outputs and pages through the storage room and keep the record of what exists. What runs on a
cluster, and what is printed or parsed on a command line, belongs in jobs; networks and arithmetic on pixels belong
in nn and inference.
"""
