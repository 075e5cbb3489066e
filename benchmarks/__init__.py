"""Timings and quality measurements, run by hand or by ``oes-fast bench``."""
