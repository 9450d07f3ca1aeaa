"""Per-client metrics, honest selection and comparison."""
