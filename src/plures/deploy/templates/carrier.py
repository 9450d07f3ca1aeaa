"""Flower finds the server and the client here."""

from plures.deploy.app import client, server

__all__ = ["client", "server"]
