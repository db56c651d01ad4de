"""A model seen as sublayers: finds, runs and observes them, and makes a smaller model of them."""
