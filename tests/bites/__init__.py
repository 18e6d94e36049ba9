"""Planted bugs: each is put into a copy of the project, and the tests named beside it must turn red."""
