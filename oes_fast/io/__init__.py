"""Everything that reads or writes files: images, tensors, plots, and the files of the published code."""
