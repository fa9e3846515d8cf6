"""Studies: slow programs that answer a question and print a table. Only the short soak is a test."""
