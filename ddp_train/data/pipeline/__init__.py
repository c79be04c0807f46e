"""From decoded samples to the batches of a rank."""
