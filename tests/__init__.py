"""Tests of the library and the jobs, in folders that mirror theirs. README.md has the map."""
