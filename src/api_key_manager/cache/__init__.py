"""Keeps this process's cached records true to a store that others change too."""

from api_key_manager.cache.follower import Feed, Follower

__all__ = ["Feed", "Follower"]
