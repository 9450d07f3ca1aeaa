"""Federations of real sites: what members agree on, a site, the coordinator, and the app that Flower runs."""

from plures.deploy.conduct import Conductor
from plures.deploy.plan import Allow, Plan, SiteFile
from plures.remote.site import Site

__all__ = ["Allow", "Conductor", "Plan", "Site", "SiteFile"]
