"""What a person runs on the outside of a training run."""
