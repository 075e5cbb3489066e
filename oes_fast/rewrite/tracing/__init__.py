"""From a network to a graph of stages, and whether the trace has seen all that the network computes."""
