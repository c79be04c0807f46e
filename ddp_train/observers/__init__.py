"""What a run shows and records: console, history, TensorBoard, Weights & Biases."""
