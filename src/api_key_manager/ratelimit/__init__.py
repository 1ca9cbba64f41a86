"""What keys have taken and which nonces were used, kept in Redis for all nodes."""
