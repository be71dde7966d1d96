"""Tests of the `fastpull` command that need neither root nor a container runtime."""
