"""Tables and the single-file HTML report of a comparison."""
