"""HTTP: the hot path, the administrative routes, who may call them, and how errors look."""
