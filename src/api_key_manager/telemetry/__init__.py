"""What a deployment tells of itself: numbers for Prometheus, and log lines.

``numbers`` and ``logs`` import nothing; ``metrics`` imports prometheus-client, which a library
user who scrapes nothing need not wait for.
"""
