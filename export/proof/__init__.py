"""The proof holds a bundle against what torch gives, by a pipeline that opens one part at a time."""
