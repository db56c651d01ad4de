"""The loop of K-prune, and what it needs: hidden states, statistics, checkpoints."""
