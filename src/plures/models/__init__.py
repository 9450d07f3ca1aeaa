"""Reference networks, and modules seen as pure functions of their leaves."""

from plures.models.network import LeafInfo, Leaves, ModelFactory, Network, build, with_roles

__all__ = ["LeafInfo", "Leaves", "ModelFactory", "Network", "build", "with_roles"]
