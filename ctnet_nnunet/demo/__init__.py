"""``ctnet demo``: the whole way on a small real data set, by the same commands that a user types."""
