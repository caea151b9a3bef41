"""grujax beside other GRUs: the same weights, the same work, checked equal, timed in turns."""
