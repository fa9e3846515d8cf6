"""Parts of the benchmark: its workload, timed functions, job runs and report.

Nothing here is used by the jobs themselves, except that the benchmark runs them. Code that a job needs belongs in
`jobs/training`, `jobs/prediction` or `jobs/common`.
"""
