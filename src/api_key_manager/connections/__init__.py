"""What several rooms share: the tables, and statements compiled from them."""

from api_key_manager.connections.statements import Many, Rows, Script, Statement, Step
from api_key_manager.connections.tables import metadata

__all__ = ["Many", "Rows", "Script", "Statement", "Step", "metadata"]
