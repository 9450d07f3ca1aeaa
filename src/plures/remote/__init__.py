"""Clients at sites: the protocol between coordinator and site, and the checks that each makes of the other."""
