"""A coordinator and its sites as real Flower processes on this machine: for the demo, the tests and the benchmarks."""
