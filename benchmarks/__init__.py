"""What things cost here and now: `make bench`."""
