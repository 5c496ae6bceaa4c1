"""The cost of the operations, beside peers and the floor of the hardware."""
