"""What knows nothing of diffusion."""
