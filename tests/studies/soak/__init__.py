"""Study: jobs that recover from many faults, one after another, with the results of an undisturbed run.

    python -m tests.studies.soak --faults 50 --seed 0

    1. train and predict once, undisturbed                            the references
    2. run a job again in another place and inject one fault          see KINDS
    3. wait until it has recovered                                    unless it must recover itself: run it again
    4. compare ledger, outputs and run folder with the references     byte for byte

The study uses drawn people, a cluster of two nodes with one core each, and S3 behind a proxy or local folders. Kind,
place and time of every fault follow from the seed. The first violation ends the study with exit code 1, the seed and
the number of the fault. A fault takes some 35 seconds on two cores.
"""
