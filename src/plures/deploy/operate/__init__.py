"""Operating a federation: status, starting and stopping runs, members, keys, upgrades."""
