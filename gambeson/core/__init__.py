"""Types, errors, random streams, threat models, losses and the handling of weights and modes."""
