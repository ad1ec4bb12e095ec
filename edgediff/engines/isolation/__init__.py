"""Isolation: the libraries that read a stranger's files run in a child process that can do little else."""
