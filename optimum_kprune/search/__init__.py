"""The search for the smallest model that is good enough: rates are tried in rounds, each inside of a bracket."""
