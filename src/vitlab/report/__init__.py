"""Tell a person about a run: terminal, TensorBoard, report.html."""
