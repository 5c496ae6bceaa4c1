"""A ResNet on CIFAR-10 whose layers share the clusters of their channels."""
