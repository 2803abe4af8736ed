"""Vision Transformer experiments on CIFAR-10 that can be believed."""
