"""The only room that names backends: settings become a running manager here."""

from api_key_manager.wiring.backups import backup
from api_key_manager.wiring.care import Finding, diagnose, upgrade
from api_key_manager.wiring.deployment import Deployment, open_deployment, open_manager
from api_key_manager.wiring.limits import refuse_unshared_limits
from api_key_manager.wiring.restoring import Restore, Restored, restore
from api_key_manager.wiring.worker import Worker

__all__ = [
    "Deployment",
    "Finding",
    "Restore",
    "Restored",
    "Worker",
    "backup",
    "diagnose",
    "open_deployment",
    "open_manager",
    "refuse_unshared_limits",
    "restore",
    "upgrade",
]
