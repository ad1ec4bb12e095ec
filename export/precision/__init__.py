"""A precision stores or computes a part's graph in fewer bits, and stays as near to torch as its ceiling says."""
