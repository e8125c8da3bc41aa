"""What seismic volumes mean: labelled synthetic surveys, facies, faults."""
