"""What the experts do: routing by domain, drift, ablations, likeness of weights."""
