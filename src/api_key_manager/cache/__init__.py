"""Keeps this process's cached records true to a store that others change too."""

from api_key_manager.cache.follower import Follower
from api_key_manager.cache.gathering import Gathering
from api_key_manager.cache.window import Window

__all__ = ["Follower", "Gathering", "Window"]
