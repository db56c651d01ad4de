"""A model seen as sublayers: where they are, how they are run and observed, how a smaller one is made of them."""
