"""The commands: gotask, gotask-server and gotask-worker."""
