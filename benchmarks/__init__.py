"""What the operations cost, beside peers and the floor of the hardware."""
