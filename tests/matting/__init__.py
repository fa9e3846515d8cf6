"""Tests of the library, in folders that mirror its packages."""
