"""Where a run's figures go beside metrics.jsonl: TensorBoard, Weights & Biases, Trackio, Prometheus."""
