"""A whole cluster on one machine: PostgreSQL, Redis, nodes, and nginx before them.

One implementation for `make cluster`, the benchmarks and the tests. Everything it makes lies in one
folder, everything it starts listens on loopback, and everything it stops it has started.
"""

from scripts.cluster.errors import ClusterError, MissingProgramError
from scripts.cluster.gateway import Gateway
from scripts.cluster.parts import Part
from scripts.cluster.postgres import Postgres
from scripts.cluster.programs import require
from scripts.cluster.redis import Redis
from scripts.cluster.whole import Cluster, Ports

__all__ = [
    "Cluster",
    "ClusterError",
    "Gateway",
    "MissingProgramError",
    "Part",
    "Ports",
    "Postgres",
    "Redis",
    "require",
]
