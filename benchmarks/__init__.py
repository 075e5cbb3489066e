"""Timings and quality measurements, run by hand."""
