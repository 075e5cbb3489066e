"""The runs that users start: search a mask, train with it, carry it to another image."""
