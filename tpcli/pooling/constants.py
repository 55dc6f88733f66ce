"""Numbers that torch's operators and the compiled loops share; the loops are handed them."""

FAR = 1e30
"""Squared distance from a token that is not finite to any other."""

SHRINK = 2**-16
"""Products count less by this share in Ward's distances, so that rounding leaves none below zero:
||z_i - z_j||^2 can't be told from 0 below some 2^-21 of ||z_i||^2 + ||z_j||^2."""

LEAST_PRODUCT = 1e-26
"""Added to products, times some 256 N, so that no distance is 0."""

PLACES = 256
"""Positions move no cost of Ward's by more than 1 / `PLACES` against another."""

RELUCTANCE = 2.0
"""Penalty on one-sided merges: the partner will move to its own cheaper match."""

SKETCH_DIM = 48
"""Channels of the sketch that finds Ward's candidates."""

LAYER_NORM_EPSILON = 1e-5
"""What is added to a token's variance; torch's own default."""

LARGEST_STRETCH = 100.0
"""No mean is stretched by more, where tokens cancel each other."""

LEAST_NORM = 1e-30
"""No mean is divided by a norm below it."""
