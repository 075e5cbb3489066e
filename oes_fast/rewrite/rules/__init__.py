"""The exact rewriting rules, one a file: each turns a graph into another one that computes the same."""
