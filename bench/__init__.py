"""Speed, measured side by side with budgets and peers: `make bench` runs all of it and prints one table."""
