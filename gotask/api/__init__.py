"""The HTTP edge: REST over the operations of `gotask.service`."""
