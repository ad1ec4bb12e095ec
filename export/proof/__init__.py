"""The proof: what torch gives, and a pipeline that runs one part at a time to hold a bundle against it."""
