"""What ``scripts/bench`` runs: one module for each benchmark, and what they share."""
