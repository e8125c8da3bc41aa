"""Online scoring: the predictor of a bundle behind HTTP, for arrays in a request and for regions of surveys."""
