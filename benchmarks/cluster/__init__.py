"""What a cluster on this machine does, in numbers: `make bench-cluster`."""
