"""Federations of real sites: schema, checks, a site, the coordinator, and what a site publishes."""
