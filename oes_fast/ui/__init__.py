"""A page on which an image is restored before the eyes of who asked for it; see docs/ui.md."""
