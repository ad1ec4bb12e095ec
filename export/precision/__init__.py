"""Precisions: a part's fp32 graph in fewer bits, as near to torch as its ceiling says."""
