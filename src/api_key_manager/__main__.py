"""``python -m api_key_manager``: the same as ``akm``."""

from __future__ import annotations

import sys

from api_key_manager.cli import main

if __name__ == "__main__":
    sys.exit(main())
