"""Clients at sites: what coordinator and site say to each other, and what each believes of the other."""
