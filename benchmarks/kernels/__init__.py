"""What can be known of the CUDA kernels without a GPU: their resources, occupancy and least times."""
