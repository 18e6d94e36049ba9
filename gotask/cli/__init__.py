"""The three commands: gotask, gotask-server, gotask-worker."""
