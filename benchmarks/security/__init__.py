"""Does the time of a refusal tell what was wrong? `make bench-security`."""
